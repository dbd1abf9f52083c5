"""The limits of layouts, each stated once; nothing here loads numpy."""

MAX_LENGTH = 2**31 - 1
"""Queries or keys of a layout: its arrays are int32."""

SIDES = (16, 32, 64, 128, 256)
"""What a side of a tile may be."""

SLOTS = 4
"""Zones that one mask may hold before it becomes bits."""

MAX_TILES = 30_000_000
"""Partial tiles, each zone's counted for itself."""

MAX_BITS = 2**30
"""Bytes of bit masks."""

MAX_BYTES = 2**32
"""Bytes that building a layout may take at its highest, the layout included."""

HOPELESS = 2**22
"""Tiles above which a graph whose tiles hold fewer than two edges each is not built unasked."""

MAX_TEXT = 4096
"""Characters of a pattern's text that a layout keeps."""

DENSE_LIMIT = 2**30
"""Entries of a bool mask that `Layout.dense` will build."""
