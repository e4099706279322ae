"""`python -m piip`, and `torchrun -m piip` for several processes."""

from piip.cli.main import app

app(prog_name="piip")
