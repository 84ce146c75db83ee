"""The plan of a staircase: which cell joins where, and what it copies."""

from rome_mlx.tracing.restore import Join, hidden_cells, joins, window_cells


def test_hidden_cells_join_one_a_layer_with_their_own_state():
    assert joins(hidden_cells(3)) == [Join(1, 0), Join(2, 1), Join(3, 2)]


def test_windows_from_the_same_layer_are_one_until_the_shorter_ends():
    cells = window_cells(6, 4)
    assert [cell.restored for cell in cells] == [(0, 2), (0, 3), (0, 4), (1, 5), (2, 6), (3, 6)]
    assert joins(cells) == [Join(1, 2), Join(2, 3), Join(2, 0, 2), Join(3, 4), Join(3, 1, 2),
                            Join(4, 5)]


def test_windows_of_one_layer_share_nothing():
    assert all(join.trunk is None for join in joins(window_cells(5, 1)))


def test_a_window_wider_than_the_model_is_run_once():
    plan = joins(window_cells(3, 20))
    assert sum(join.trunk is None for join in plan) == 1
    assert sorted(join.cell for join in plan) == [0, 1, 2]


def test_a_cell_copies_one_that_joined_below_it():
    for window in range(1, 12):
        plan = joins(window_cells(8, window))
        joined = {join.cell: join.layer for join in plan}
        assert all(joined[join.trunk] < join.layer for join in plan if join.trunk is not None)
