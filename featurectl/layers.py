"""``featurectl layers``: what there is to tap in a model."""

from __future__ import annotations

from typing import Annotated

import typer

from featurectl import options


def layers(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A torchvision model, timm:NAME or package.module:function.")
    ],
    image_size: Annotated[
        int | None, typer.Option(metavar="PX", min=1, help="Pixels a side. Default: the ImageNet preset's, 224.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """List a model's layers: the names that --tap takes, output shapes, and bytes a row as a map and pooled.

    In the order in which they run; bytes are those of float16. Weights are not needed.
    """
    from featurectl.output import count_text, print_json, print_table
    from featurestream.lookup import is_import_path
    from featurestream_producer.backbones import build_backbone
    from featurestream_producer.layers import layer_table

    # Shapes do not depend on weights, and random ones need no download; a function of the user's builds its own.
    own = is_import_path(model) and not model.startswith("timm:")
    backbone = build_backbone(model, weights=None if own else "random", seed=0)
    rows = layer_table(backbone.model, image_size or backbone.preset.image_size)
    if as_json:
        for row in rows:
            print_json(
                {
                    "layer": row.name,
                    "type": row.type,
                    "calls": row.calls,
                    "shape": list(row.output_shape) if isinstance(row.output_shape, tuple) else row.output_shape,
                    "bytes_map": row.bytes_map_fp16,
                    "bytes_gap": row.bytes_gap_fp16,
                }
            )
        return
    print_table(
        ["layer", "type", ">calls", "output", ">bytes", ">bytes pooled"],
        [
            [
                row.name,
                row.type,
                str(row.calls),
                row.output_shape if isinstance(row.output_shape, str) else " x ".join(map(str, row.output_shape)),
                "-" if row.bytes_map_fp16 is None else count_text(row.bytes_map_fp16),
                "-" if row.bytes_gap_fp16 is None else count_text(row.bytes_gap_fp16),
            ]
            for row in rows
        ],
    )
