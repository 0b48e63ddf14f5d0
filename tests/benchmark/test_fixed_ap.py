from ovd_d2.benchmark.fixed_ap import NAMES, REGIONS, cost, main


def test_costs_of_an_image():
    row = cost(20, 60, 80)
    assert row["detections"] == 20
    assert row["masks_mb"] == 20 * 28 * 28 * 4 / 1e6
    assert {"select_s", "encode_s"} <= row.keys()


def test_without_a_limit_nearly_every_pair_stays_and_no_mask_is_made():
    row = cost(-1, 480, 640)
    assert 0.8 * REGIONS * NAMES < row["detections"] <= REGIONS * NAMES
    assert "encode_s" not in row


def test_rows_of_a_table(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["fixed_ap", "--limits", "5", "--size", "40", "50"])
    main()
    assert capsys.readouterr().out.splitlines()[-1].startswith("| 5 | 5 | 0.02 |")
