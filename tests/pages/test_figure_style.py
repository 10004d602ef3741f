"""Names of layers in figures."""

from lightning_anomaly.pages.figure_style import layer_text


def test_long_names_are_cut_at_the_left_where_they_resemble_each_other() -> None:
    assert layer_text("network.6", 9) == "layer network.6"
    assert layer_text("network.blocks.12.conv", 8) == "layer …12.conv"
    assert layer_text("", 8) == "the model"
