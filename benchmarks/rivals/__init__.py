"""The same work in PyTorch. Nothing else in this repository knows torch; `pip install -e '.[bench]'` brings it."""
