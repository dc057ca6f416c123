"""A training recipe: every number of a run (M+ section 3.3, appendix D).

Defaults are the published values; `recipe_files` reads them from files. Neither imports torch or DeepSpeed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from mplus_cli.config import Range
from mplus_cli.training.stages import STAGES, StageName

Share = Annotated[float, Range(0, 1)]
Positive = Annotated[float, Range(above=0)]
NotNegative = Annotated[float, Range(0)]
Count = Annotated[int, Range(1)]
Whole = Annotated[int, Range(0)]  # 0 switches something off


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """The write and read adapters; both have these sizes.

    Attributes:
        r, alpha: rank, and the numerator of the scale alpha / r.
        dropout: of the adapters' inputs. 0.1 in the published code; 0 here, so that a write computed twice is the same.
        target_modules: adapted projections.
    """

    r: Count = 16
    alpha: Count = 32
    dropout: Share = 0.0
    target_modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "up_proj", "down_proj", "gate_proj")


@dataclass(frozen=True, kw_only=True)
class MemorySettings:
    """Sizes and rules of memory; they go into the checkpoint's configuration (see `MPlusConfig`).

    Attributes:
        memory_tokens_per_write: K.
        short_term_size: N, tokens per layer.
        long_term_capacity: M, tokens per layer; 0 for none.
        retrieval_budget: K_theta, long-term tokens per layer that a read retrieves.
        chunk_size: text tokens per write that the finished model is used with.
        retriever_size, retriever_layers: r, and linear layers of each projector.
        retriever_score: `mean_sigmoid` (published) or `log_sum_exp` (what the contrastive loss trains).
        eviction, fill_rule: see `MPlusConfig`.
        rope_frequency_dtype: dtype that rotary frequencies are rounded to; None for that of the starting model.
        initial: `empty`, or `noise`: short-term memory begins full of N(0, 1), as published.
        lora: the adapters; None for a backbone without.
    """

    memory_tokens_per_write: Count = 256
    short_term_size: Count = 12_800
    long_term_capacity: Whole = 0
    retrieval_budget: Count = 2_560
    chunk_size: Count = 512
    retriever_size: Count = 256
    retriever_layers: Literal[1, 2] = 2
    retriever_score: Literal["mean_sigmoid", "log_sum_exp"] = "mean_sigmoid"
    eviction: Literal["oldest", "recall_frequency"] = "oldest"
    fill_rule: Literal["all", "tile"] = "all"
    rope_frequency_dtype: Literal["float32", "bfloat16"] | None = None
    initial: Literal["empty", "noise"] = "empty"
    lora: LoraSettings | None = field(default_factory=LoraSettings)


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """What is read, and how a document becomes contexts and a target (published `MixedStream`).

    Attributes:
        sources: builds (`FOLDER` or `FOLDER:BUCKET`), folders, files, globs or hub ids; together one corpus. The
            questions and in_context tasks need questions about the texts (see `sources`).
        min_chunk, max_chunk: tokens of a context, drawn uniformly between them.
        window: most tokens of a target, and of what is read at once.
        repeat_ratio: share of documents whose target is "Repeat: " and their own contexts.
        batch_size: documents per process and step, each with its own memory.
        look_ahead: documents held back to make batches of like length from.
        longest_document: characters; longer texts are cut into documents where paragraphs begin, so that no more of a
            text is tokenized than a step uses. None for no limit.
        text_field: name of the text in a row.
        revision: of sources on the hub.
        eval_documents: documents held out for validation.
    """

    sources: tuple[str, ...] = ()
    min_chunk: Count = 16
    max_chunk: Count = 512
    window: Count = 2_048
    repeat_ratio: Share = 0.1
    batch_size: Count = 1
    look_ahead: Count = 64
    longest_document: Count | None = None
    text_field: str = "text"
    revision: str | None = None
    eval_documents: Whole = 0


@dataclass(frozen=True, kw_only=True)
class QuestionSettings:
    """The questions task (ours): write contexts of a document, then answer questions about facts told in them.

    Attributes:
        share: of all steps.
        per_memory: questions to each row's memory, answered side by side.
        rebuild: weight of rebuilding one context, written with gradient, token by token.
        fewest_contexts: a step writes between so many and the cap of `max_contexts`, drawn uniformly, the same for all
            rows; which stretch of a longer document is drawn too.
        help, help_until: probability at step 0, falling linearly to 0 at step `help_until`, that the long-term tokens
            of the asked context are retrieved whatever their score.
        lend_stores: probability that in a step every row also finds the long-term memories of the batch's other rows.
    """

    share: Share = 0.0
    per_memory: Count = 12
    rebuild: NotNegative = 0.3
    fewest_contexts: Count = 1
    help: Share = 0.0
    help_until: Whole = 0
    lend_stores: Share = 0.0


@dataclass(frozen=True, kw_only=True)
class InContextSettings:
    """The in-context task (ours): a context followed by questions about it, without memory.

    Attributes:
        share: of all steps.
        questions: at most, after each context.
        text_weight: weight of the loss on the context itself.
    """

    share: Share = 0.0
    questions: Count = 4
    text_weight: NotNegative = 0.5


@dataclass(frozen=True, kw_only=True)
class CopyingSettings:
    """The copying task (ours): random token strings, each repeated to the end of the row; loss on the copies.

    Attributes:
        share: of all steps.
        first: so many steps at the beginning do nothing else.
        rows, length: of a batch, per process.
        shortest, longest: tokens of the string that is repeated.
    """

    share: Share = 0.0
    first: Whole = 0
    rows: Count = 16
    length: Count = 112
    shortest: Count = 4
    longest: Count = 24


@dataclass(frozen=True, kw_only=True)
class TaskSettings:
    """Which task a step runs. First ours by their shares, then the published ones in this order.

    Attributes:
        full_context: share of steps that read a document beside unrelated memory.
        revisit: of the rest, probability of asking again for the target of a document written a while ago.
        full_memory: of the rest, probability of reading the whole memory (several contexts) instead of the two-chunk
            task.
        replace_cached: probability that after a revisit the next document takes the place of the revisited one.
        max_contexts: `[until step, contexts]` pairs, the last with null: most contexts written per document.
        two_chunk_adapter: adapter that reads in the two-chunk task: `paper` (the read adapter) or `published`, the
            released code's (the write adapter).
        gradient_writes: contexts per row of a multi-chunk or questions step that are written with gradient, each taking
            the memory before it as given; 0 as published. The newest is always among them.
        fresh_memory: probability that all rows of a step start from a new memory; 0 as published.
        refresh_keys: steps after which the retrieval keys of long-term memory are made again with the present
            weights; 0 for never, as published.
        repeat_unscored: tokens after "Repeat:" without loss.
        questions, in_context, copying: our tasks.
    """

    full_context: Share = 0.1
    revisit: Share = 0.2
    full_memory: Share = 0.8
    replace_cached: Share = 1.0
    max_contexts: tuple[tuple[Count | None, Count], ...] = ((100_000, 50), (200_000, 100), (None, 200))
    two_chunk_adapter: Literal["paper", "published"] = "paper"
    gradient_writes: Whole = 0
    fresh_memory: Share = 0.0
    refresh_keys: Whole = 0
    repeat_unscored: Whole = 5
    questions: QuestionSettings = field(default_factory=QuestionSettings)
    in_context: InContextSettings = field(default_factory=InContextSettings)
    copying: CopyingSettings = field(default_factory=CopyingSettings)


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """Losses beside next-token cross-entropy, and what is kept for the backward pass.

    Attributes:
        retriever: `published` (binary cross-entropy on the mean of sigmoids), `contrastive`, or None.
        retriever_weight: of the retriever's loss.
        negative_weight: of the negatives in the published form.
        hard_negatives: the contrastive form also scores other rows' memory tokens.
        candidates: most long-term tokens per row, positives apart, that the contrastive form scores; 0 for all.
        random_query_length: search with a random beginning of the target, drawn per layer; as published.
        write_side: also train the published encoder-side query projector.
        reaches_model: the retriever's loss also reaches the language model (contrastive only; published: never).
        gradient_checkpointing: recompute layers in the backward pass instead of keeping them.
    """

    retriever: Literal["published", "contrastive"] | None = None
    retriever_weight: NotNegative = 1.0
    negative_weight: NotNegative = 1.0
    hard_negatives: bool = True
    candidates: Whole = 4_096
    random_query_length: bool = False
    write_side: bool = False
    reaches_model: bool = False
    gradient_checkpointing: bool = False


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """AdamW and its schedule.

    Attributes:
        lr: of everything but the retriever, before scaling; retriever_lr: of the retriever, never scaled.
        lr_scaling: `linear_batch` multiplies lr by processes x batch size x accumulation, as published; or `none`.
        clip: largest gradient norm, or None.
        schedule: after warm-up `constant`, or from 1 to `final_ratio` over `schedule_steps` (default: all steps).
        accumulation: batches per optimizer step.
    """

    lr: Positive = 4.6e-6
    retriever_lr: Positive = 1e-4
    lr_scaling: Literal["none", "linear_batch"] = "linear_batch"
    betas: tuple[Share, Share] = (0.9, 0.999)
    eps: Positive = 1e-8
    weight_decay: NotNegative = 0.01
    clip: Positive | None = None
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: Whole = 0
    final_ratio: Share = 1.0
    schedule_steps: Count | None = None
    accumulation: Count = 1


@dataclass(frozen=True, kw_only=True)
class CheckpointSettings:
    """When the run is saved.

    Attributes:
        every: steps between checkpoints.
        keep_last, keep_best: how many are kept.
    """

    every: Count = 10_000
    keep_last: Count = 1
    keep_best: Whole = 3


@dataclass(frozen=True, kw_only=True)
class LoggingSettings:
    """What is seen of a run.

    Attributes:
        every: steps between lines of the journal.
        tensorboard: also write TensorBoard events.
    """

    every: Count = 10
    tensorboard: bool = False


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything a run does.

    Attributes:
        stage: "base", 1, 2 or 3 (see `stages`).
        model: folder or hub id that the stage starts from; its tokenizer is used. With `new_backbone` the tokenizer's
            folder.
        new_backbone: configuration of a Hugging Face decoder to start from new weights, `model_type` and sizes; and
            `start`: `random`, or `copying` for a backbone that can copy from the first steps (see `copying_start`).
        seed: of everything that is drawn.
        steps: optimizer steps.
        train: names of the parameter groups that learn; None for the stage's.
        deepspeed: name of a shipped DeepSpeed configuration, or path of one, relative to the recipe.
        precision: of weights and activations.
    """

    stage: StageName
    model: str
    new_backbone: dict[str, Any] | None = None
    seed: int = 42
    steps: Count = 1_200_000
    train: tuple[str, ...] | None = None
    memory: MemorySettings = field(default_factory=MemorySettings)
    data: DataSettings = field(default_factory=DataSettings)
    tasks: TaskSettings = field(default_factory=TaskSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)
    logging: LoggingSettings = field(default_factory=LoggingSettings)
    deepspeed: str = "zero2"
    precision: Literal["bfloat16", "float32"] = "bfloat16"

    @property
    def trained_groups(self) -> tuple[str, ...]:
        """The groups that learn."""
        return STAGES[self.stage].trains if self.train is None else self.train

    @property
    def has_retrievers(self) -> bool:
        """Whether the model of this run has retrievers; with long-term memory, or to train them ahead of it."""
        return self.memory.long_term_capacity > 0 or "retriever" in self.trained_groups
