"""A conversation of two turns, the second one streamed: python examples/chat_about_picture.py [MODEL]."""

import sys

from tilewise import GenerationConfig, pipeline
from tilewise.demo import picture_path

generation = GenerationConfig(max_new_tokens=32, do_sample=True, temperature=0.7, random_seed=1)

with pipeline(sys.argv[1] if len(sys.argv) > 1 else None) as pipe:
    session = pipe.chat(("What shapes are in this picture?", str(picture_path())), gen_config=generation)
    print(session.response)
    session = pipe.chat("Which one is the largest?", session=session, gen_config=generation)
    print(session.history[-1])

    for piece in pipe.stream_infer("Describe a triangle.", generation):
        print(piece.text, end="", flush=True)
    print()
