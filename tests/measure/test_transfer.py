"""What stands beside a cell of the transfer matrix: the share of the gap, and how far the weights are apart."""

import json
from dataclasses import replace

import ctplab as ctp
from ctplab.formats.prompt_file import SavedPrompt, made_for
from ctplab.measure.recovery import recover
from ctplab.measure.tasks.transferred import transfer_tasks
from ctplab.measure.transfer import Target, TransferCell, home, transfer
from ctplab.models.fingerprints import copy_fingerprint
from ctplab.prompts import prefix
from ctplab.show.gaps import gaps_table


def test_the_gap_and_the_distance_beside_each_cell(llama, tokenizer, web, quiet):
    """Recovery is that of ``recover``; the nearest copy counts; another copy of the same level is no home."""
    spec, names = ctp.CompressionSpec(bits=3), ("a", "b", "c")
    copies = {n: ctp.compress(llama, web.train.sample(4, i), spec, **quiet)[0] for i, n in enumerate(names)}
    rows = prefix.random_rows(copies["a"], 4)
    known = {"base": "tiny", "tag": "w3", "copies": [copy_fingerprint(copies[n]) for n in ("a", "b")]}
    source = SavedPrompt(rows, rows, known | made_for(llama, tokenizer))
    targets = [Target(n, home(known), lambda n=n: (copies[n], tokenizer)) for n in names]
    more = {"full": llama, "learned_on": [copies["a"], copies["b"]]}
    found = transfer({"ab": source}, targets, ["atlas-web"], seq_len=32, limit=6, **more)
    cells = {cell.target: cell for cell in found if cell.source == "ab"}
    assert [cells[n].diagonal for n in names] == [True, True, False]
    assert cells["a"].distance.apart == cells["b"].distance.apart == 0
    both = [ctp.weight_distance(copies[n], copies["c"], llama) for n in ("a", "b")]
    assert cells["c"].distance == min(both, key=lambda distance: distance.apart)
    text = ctp.corpus("atlas-web", tokenizer, 32).test
    arms = ctp.arms(full=llama, compressed=copies["c"], soft=rows)
    assert cells["c"].recovery == recover(arms, text, limit=6)["soft"].recovery
    assert TransferCell.from_json(json.loads(json.dumps(cells["c"].to_json()))) == cells["c"]
    shown = gaps_table(found)
    assert cells["c"].recovery.percent in shown and str(cells["c"].distance) in shown and shown.count("ab *") == 2

    plain = [c for c in transfer({"ab": source}, targets[2:], ["atlas-web"], seq_len=32, limit=6) if c.source == "ab"]
    assert plain == [replace(cells["c"], recovery=None, distance=None)]
    asked = transfer_tasks({"ab": source}, targets[1:], ["atlas"], limit=2)
    assert [cell.diagonal for cell in asked if cell.source == "ab"] == [True, False]


def test_the_full_model_as_a_target_has_no_gap(llama, tokenizer):
    rows = prefix.random_rows(llama, 4)
    source = SavedPrompt(rows, rows, {"copies": [copy_fingerprint(llama)]} | made_for(llama, tokenizer))
    targets = [Target("full", "tiny full", lambda: (llama, tokenizer))]
    more = {"full": llama, "learned_on": [llama], "limit": 4}
    _, cell = transfer({"s": source}, targets, ["atlas-web"], seq_len=32, **more)
    assert cell.diagonal and cell.distance.apart == 0 and cell.distance.in_errors is None
    assert cell.recovery.value != cell.recovery.value, "nan: there is nothing to close"
    assert "cannot tell" in gaps_table([cell])
