import qcowkit


def test_the_version_is_the_workspaces() -> None:
    assert qcowkit.__version__.count(".") == 2
