"""Ask about one picture: python examples/describe_picture.py MODEL PICTURE (both may be left out)."""

import sys

from tilewise import GenerationConfig, pipeline
from tilewise.demo import picture_path
from tilewise.vl import load_image

model = sys.argv[1] if len(sys.argv) > 1 else None
image = load_image(sys.argv[2] if len(sys.argv) > 2 else str(picture_path()))

with pipeline(model) as pipe:
    print(pipe(("请描述图中内容", image), GenerationConfig(max_new_tokens=64)))
