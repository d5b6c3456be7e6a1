"""Everything a command or an asset needs, opened once: settings, the game's database, our store, the ledger."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

import sqlalchemy as sa

from babylon_rl.database.connection import connect, game_url, platform_url
from babylon_rl.database.ownership import created_by_us, refuse_foreign_game
from babylon_rl.errors import ConfigError
from babylon_rl.policy.process import base_of, running_server
from babylon_rl.settings import Settings
from babylon_rl.store.ledger import Ledger
from babylon_rl.store.ledger_identity import read_ledger_id, read_manifests
from babylon_rl.store.windows import Store
from babylon_rl.training.checkpoint_store import claim, find_unclaimed


def _read_clock() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workspace:
    """Open handles of one process.

    Attributes:
        game: The game's own tables; read, and written only where the database is ours.
        store: What the assets keep.
        owns_game: Whether the game's database is ours to write (embedded, or one that we migrated).
        now: The clock that retries, budgets and open hours go by.
    """

    settings: Settings
    game: sa.Engine
    store: Store
    ledger: Ledger
    now: Callable[[], datetime] = _read_clock

    @property
    def owns_game(self) -> bool:
        if self.game is not self.store.engine:
            return False  # our schema lives elsewhere so that the game's database stays untouched
        with self.game.connect() as conn:
            return created_by_us(conn, "market_outcomes")

    def refuse_foreign_game(self, what: str, *, into_foreign_game: bool = False) -> None:
        """Refuse to let simulated agents play into a game that is not ours, before anything is played.

        Args:
            what: The command, for the message.
            into_foreign_game: Play there all the same.

        Raises:
            ConfigError: Nothing may be written there.
        """
        with self.game.connect() as conn:
            refuse_foreign_game(conn, what, into_foreign_game=into_foreign_game)
        if self.game is not self.store.engine:
            raise ConfigError(
                f"{what} keeps the simulated market's facts in schema babylon_rl beside the game's tables, and "
                "BABYLON_PLATFORM_URL puts that schema into another database; unset it, or let the game itself play"
            )


def claim_checkpoints(workspace: Workspace) -> str:
    """The id of the workspace's ledger, after marking as its own the checkpoints from before the id that it recorded."""
    ledger_id, root = read_ledger_id(workspace.ledger.engine), workspace.settings.checkpoints_dir
    if find_unclaimed(root):
        claim(root, ledger_id, read_manifests(workspace.ledger.engine))
    return ledger_id


def running_policy_server(settings: Settings) -> AbstractContextManager[str]:
    """The endpoint that serves the checkpoints that the ledger has recorded, for the length of a `with` block."""
    return running_server(
        settings.serving,
        settings.database,
        base=base_of(settings.training),
        checkpoints=settings.checkpoints_dir,
        lineage=settings.lineage,
    )


@contextmanager
def open_workspace(settings: Settings) -> Iterator[Workspace]:
    """Connect, starting the embedded database where that is used, and close again."""
    url, own_url = game_url(settings.database), platform_url(settings.database)
    game = connect(url)
    ours = game if own_url == url else connect(own_url)
    try:
        yield Workspace(
            settings=settings,
            game=game,
            store=Store(ours),
            ledger=Ledger(ours, settings.lineage),
        )
    finally:
        game.dispose()
        ours.dispose()
