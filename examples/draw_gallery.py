"""Draw a mask of every pattern in the gallery: python examples/draw_gallery.py [FILE.png]"""

import sys
from pathlib import Path

import patterncc as pc
from patterncc import gallery, show

SHOWN = {
    "longformer": ({"half": 16, "hubs": 4}, 256),
    "bigbird": ({"hubs": 64}, 2048),
    "streaming-llm": ({"recent": 48}, 256),
    "sparse-transformer-strided": ({"stride": 16}, 256),
    "sparse-transformer-fixed": ({"stride": 16, "c": 2}, 256),
    "logsparse": ({}, 256),
    "longnet": ({}, 256),
    "butterfly": ({"block": 16}, 256),
    "packed-documents": ({}, 2048),
    "neighbourhood-2d": ({"side": 16}, 256),
    "prefix-lm": ({"prefix_length": 64}, 256),
    "expander": ({}, 2048),
}


def main(path: Path) -> None:
    """One panel a pattern: where heads differ, all of them together."""
    panels = []
    for name, (params, n) in SHOWN.items():
        file = pc.load(gallery.path(name), **params)
        memory = file.stack.memory
        layer = len(file.stack) - 1
        heads = [
            pc.lower(p, n, n + memory, memory, layer=layer, head=h, **file.bindings)
            for h, p in enumerate(file.stack.heads(layer))
        ]
        together = heads[0]
        for zones in heads[1:]:
            together = together | zones
        panels.append(show.panel(show.Mask(name, together.simplify()), 2048))
    show.picture(panels, "The gallery: which query (down) reads which key (across)", path)
    print(f"{len(panels)} masks in {path}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "gallery.png"))
