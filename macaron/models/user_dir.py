"""The door for `--user-dir macaron`: opens `macaron.user_dir`, which registers everything."""

import macaron

macaron.register_fairseq()
