"""Pushes a pack to the hub that HF_ENDPOINT names, fetches it again and predicts: prints what was found."""

import sys

import piip
from piip.weights.hub import push

folder, repository, image = sys.argv[1:]
sys.stdout.write(f"{push(folder, repository, private=False)}\n")
model = piip.create_model(f"hub:{repository}")
sys.stdout.write(f"{len(model.predict(image, threshold=0.3)['scores'])}\n")
