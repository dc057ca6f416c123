import logging

# peft imports bitsandbytes wherever it is installed, and that names each optional kernel it lacks, at every start.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
