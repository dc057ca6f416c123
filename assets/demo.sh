#!/bin/sh
# The demo: put a sample chronicle into memory, then ask about it. Run by `make demo`, or: sh assets/demo.sh mplus
# Questions with their answers, one per line: question, right answer, where the text says it (tab-separated).
set -eu
mplus=${1:-mplus}
folder=$(dirname "$0")
state=${2:-demo/memory.pt}
mkdir -p "$(dirname "$state")"

echo "== injecting $folder/chronicle.txt =="
"$mplus" inject "$folder/chronicle.txt" --state "$state" --fresh

tab=$(printf '\t')
while IFS=$tab read -r question right where; do
  echo
  echo "== $question"
  echo "   (the chronicle says $right, $where)"
  printf 'with long-term memory:    '
  "$mplus" ask "$question" --state "$state" --quiet </dev/null
  printf 'short-term memory alone:  '
  "$mplus" ask "$question" --state "$state" --quiet --no-ltm </dev/null
done < "$folder/chronicle_questions.tsv"
