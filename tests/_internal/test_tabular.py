"""Tables are aligned in a console and escaped in a notebook; lists end with the number of what they leave out."""

from lightning_anomaly._internal.tabular import Tabular, listed


class Table(Tabular):
    def _table_rows(self) -> list[tuple[str, str]]:
        return [("name", "n"), ("a<b", "12")]

    def _sentences(self) -> list[str]:
        return ["That's all."]


class Introduced(Table):
    def _introduction(self) -> list[str]:
        return ["First."]


def test_a_table_has_aligned_columns_and_sentences_before_and_after() -> None:
    lines = ["name  n", "--------", "a<b   12", "That's all."]
    assert str(Table()).splitlines() == lines
    assert repr(Introduced()).splitlines() == ["First.", "", *lines]
    rows = "<thead><tr><th>name</th><th>n</th></tr></thead>", "<tr><td>a&lt;b</td><td>12</td></tr>"
    html = Introduced()._repr_html_().splitlines()
    assert html == ["<p>First.</p>", "<table>", rows[0], "<tbody>", rows[1], "</tbody>", "</table>", *html[-1:]]
    assert html[-1] == "<p>That&#x27;s all.</p>"


def test_a_long_list_is_cut() -> None:
    assert listed("abcde") == "a, b, c, d, e"
    assert listed([*range(1005)], "; ") == "0; 1; 2; 3; 4 and 1,000 more"
