"""An instance that knows `contextualized_groups` by its old key, `trajectory_groups`, keeps its history."""

from collections.abc import Iterator

import dagster as dg
import pytest
import sqlalchemy as sa

from babylon_rl.database.connection import connect
from babylon_rl.defs.rename_assets import rename_asset

OLD, NEW = dg.AssetKey("trajectory_groups"), dg.AssetKey("contextualized_groups")
PARTITIONS = dg.StaticPartitionsDefinition(["2025-01-15T00:00", "2025-01-15T01:00", "2025-01-15T02:00"])
TWO = PARTITIONS.get_partition_keys()[:2]


def definitions(key: dg.AssetKey) -> list[dg.AssetsDefinition | dg.AssetChecksDefinition]:
    """Groups under `key` with a check, and what is made of them."""

    @dg.asset(key=key, partitions_def=PARTITIONS, code_version="1")
    def groups() -> dg.MaterializeResult[None]:
        return dg.MaterializeResult(metadata={"members": 6})

    @dg.asset_check(asset=key, partitions_def=PARTITIONS)
    def is_large() -> dg.AssetCheckResult:
        return dg.AssetCheckResult(passed=True)

    @dg.asset(deps=[key], partitions_def=PARTITIONS, code_version="1")
    def ruler_scores() -> None: ...

    return [groups, is_large, ruler_scores]


@pytest.fixture
def instance(empty_database_url: str) -> Iterator[dg.DagsterInstance]:
    storage = {"module": "babylon_rl.defs.storage", "class": "PooledPostgresStorage"}
    custom = {**storage, "config": {"postgres_url": empty_database_url}}
    with dg.instance_for_test(overrides={"storage": {"custom": custom}}) as i:
        yield i


@pytest.fixture
def old_instance(instance: dg.DagsterInstance) -> dg.DagsterInstance:
    for key in TWO:
        assert dg.materialize(definitions(OLD), partition_key=key, instance=instance).success
    return instance


def history(instance: dg.DagsterInstance, key: dg.AssetKey) -> tuple[list[str], int, int]:
    """Partitions materialized, materializations whose event names the key, evaluations of its check."""
    kind = dg.DagsterEventType.ASSET_MATERIALIZATION
    partitions = sorted(instance.get_latest_storage_id_by_partition(key, kind, None))
    events = instance.fetch_materializations(key, limit=10).records
    check = dg.AssetCheckKey(key, "is_large")
    checked = instance.event_log_storage.get_asset_check_execution_history(check, limit=10)
    own = [r for r in checked if r.event and r.event.dagster_event.asset_check_evaluation_data.asset_key == key]
    return partitions, sum(e.asset_key == key for e in events), len(own)


def everything(url: str) -> list[tuple[object, ...]]:
    engine = connect(url)
    with engine.connect() as conn:
        tables = ("event_logs", "asset_keys", "asset_event_tags", "asset_check_executions", "runs")
        rows = [tuple(r) for t in tables for r in conn.execute(sa.text(f"SELECT * FROM {t} ORDER BY id"))]
    engine.dispose()
    return rows


def test_history_goes_on_under_the_new_key(old_instance: dg.DagsterInstance, empty_database_url: str) -> None:
    before = history(old_instance, OLD)
    assert before == (TWO, 2, 2)

    assert rename_asset(empty_database_url, "trajectory_groups", "contextualized_groups")

    assert history(old_instance, NEW) == before
    assert history(old_instance, OLD) == ([], 0, 0)
    assert not old_instance.has_asset_key(OLD)
    latest = old_instance.get_latest_materialization_event(NEW)
    assert latest is not None
    assert latest.asset_materialization is not None
    assert latest.asset_materialization.metadata["members"].value == 6
    downstream = old_instance.get_latest_materialization_event(dg.AssetKey("ruler_scores"))
    assert downstream is not None
    assert downstream.asset_materialization is not None
    tags = downstream.asset_materialization.tags or {}
    assert "dagster/input_event_pointer/contextualized_groups" in tags
    assert not any("trajectory_groups" in tag for tag in tags)

    third = PARTITIONS.get_partition_keys()[2]
    assert dg.materialize(definitions(NEW), partition_key=third, instance=old_instance).success
    assert history(old_instance, NEW) == (PARTITIONS.get_partition_keys(), 3, 3)


@pytest.mark.usefixtures("old_instance")
def test_renaming_twice_changes_nothing_more(empty_database_url: str) -> None:
    assert rename_asset(empty_database_url, "trajectory_groups", "contextualized_groups")
    once = everything(empty_database_url)
    assert not rename_asset(empty_database_url, "trajectory_groups", "contextualized_groups")
    assert everything(empty_database_url) == once


def test_history_under_both_keys_is_joined(old_instance: dg.DagsterInstance, empty_database_url: str) -> None:
    third = PARTITIONS.get_partition_keys()[2]
    assert dg.materialize(definitions(NEW), partition_key=third, instance=old_instance).success
    assert rename_asset(empty_database_url, "trajectory_groups", "contextualized_groups")
    assert history(old_instance, NEW) == (PARTITIONS.get_partition_keys(), 3, 3)


def test_a_database_that_dagster_never_opened_is_left_alone(empty_database_url: str) -> None:
    assert not rename_asset(empty_database_url, "trajectory_groups", "contextualized_groups")
