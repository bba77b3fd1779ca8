"""``python -m onnxcert`` is the command line."""

from onnxcert.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
