"""What is said where there is no terminal."""

from __future__ import annotations

from hypertrail import display


def test_a_wide_table_is_whole_in_a_file_and_in_the_log(capsys):
    log: list[str] = []
    cells = [f"{i} to {i}.5, of the whole budget" for i in range(6)]
    display.show_table(display.Voice(log.append), display.table("wide", ["", *"abcde"], [cells]))
    for said in (capsys.readouterr().out, "\n".join(log)):
        assert "…" not in said
        assert [cell for cell in cells if cell not in said] == []
