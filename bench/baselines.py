"""The applications that genhook is compared with: a bare server, and hand-written handlers.

`python -m bench.baselines NAME PORT DATABASE` serves one of them.
"""

import datetime
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from typing import Annotated, Any

import uvicorn

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

SECRET_KEY = "by-hand-by-hand-by-hand-by-hand-"
SALT = "callback"
ANSWER = b'{"status":"ok"}'


async def ceiling(scope: Scope, receive: Receive, send: Send) -> None:
    """Read the body and answer: nothing in this server can be faster."""
    if scope["type"] != "http":
        return
    more = True
    while more:
        more = (await receive()).get("more_body", False)
    headers = [(b"content-type", b"application/json"), (b"content-length", b"15")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": ANSWER})


def build_by_hand(database: str) -> Any:
    """Build a FastAPI handler that verifies, deduplicates and commits by SQLAlchemy's ORM."""
    import sqlalchemy as sa  # noqa: PLC0415  heavy
    from fastapi import Depends, FastAPI, HTTPException, Request  # noqa: PLC0415  heavy
    from itsdangerous import BadSignature, URLSafeTimedSerializer  # noqa: PLC0415  heavy
    from sqlalchemy.ext.asyncio import (  # noqa: PLC0415  heavy
        AsyncSession,
        async_sessionmaker,
        create_async_engine,
    )
    from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column  # noqa: PLC0415  heavy

    class Base(DeclarativeBase):
        pass

    class Callback(Base):
        __tablename__ = "callbacks"
        __table_args__ = (sa.UniqueConstraint("generation_id", "key"),)
        id: Mapped[int] = mapped_column(primary_key=True)
        generation_id: Mapped[str]
        key: Mapped[str]
        received_at: Mapped[datetime.datetime]
        headers: Mapped[dict[str, Any]] = mapped_column(sa.JSON)
        body: Mapped[bytes]

    engine = create_async_engine(f"sqlite+aiosqlite:///{database}", connect_args={"timeout": 30})

    @sa.event.listens_for(engine.sync_engine, "connect")
    def durable(connection: Any, _record: Any) -> None:
        for pragma in ("journal_mode=WAL", "synchronous=FULL"):
            connection.execute(f"PRAGMA {pragma}")

    sessions = async_sessionmaker(engine, expire_on_commit=False)
    tokens = URLSafeTimedSerializer(SECRET_KEY, salt=SALT)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
        yield

    async def session() -> AsyncIterator[AsyncSession]:
        async with sessions() as new_session:
            yield new_session

    app = FastAPI(lifespan=lifespan)

    @app.post("/callbacks/{token}")
    async def receive(
        token: str,
        request: Request,
        db: Annotated[AsyncSession, Depends(session)],
    ) -> dict[str, str]:
        body = await request.json()
        try:
            generation_id = tokens.loads(token, max_age=86_400)
        except BadSignature:
            raise HTTPException(404) from None
        callback = Callback(
            generation_id=generation_id,
            key=body["data"]["task_id"],
            received_at=datetime.datetime.now(datetime.UTC),
            headers=dict(request.headers),
            body=await request.body(),
        )
        db.add(callback)
        try:
            await db.commit()
        except sa.exc.IntegrityError:
            await db.rollback()
        return {"status": "ok"}

    return app


class InsertEach:
    """Verifies the token, inserts a row by asyncpg and answers: nothing by hand can do less."""

    def __init__(self, url: str) -> None:
        from itsdangerous import URLSafeTimedSerializer  # noqa: PLC0415  heavy

        self._url = url
        self._tokens = URLSafeTimedSerializer(SECRET_KEY, salt=SALT)
        self._pool: Any = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a callback, or the lifespan of the server."""
        if scope["type"] == "lifespan":
            await self._start()
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await self._pool.close()
            await send({"type": "lifespan.shutdown.complete"})
            return
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        generation_id = self._tokens.loads(scope["path"].rpartition("/")[2], max_age=86_400)
        headers = [(n.decode("latin-1"), v.decode("latin-1")) for n, v in scope["headers"]]
        now = datetime.datetime.now(datetime.UTC)
        await self._pool.execute(
            "INSERT INTO callbacks (generation_id, received_at, headers, body)"
            " VALUES ($1, $2, $3, $4)",
            *(generation_id, now, json.dumps(headers), body),
        )
        answer = [(b"content-type", b"application/json"), (b"content-length", b"15")]
        await send({"type": "http.response.start", "status": 200, "headers": answer})
        await send({"type": "http.response.body", "body": ANSWER})

    async def _start(self) -> None:
        import asyncpg  # noqa: PLC0415  only here

        self._pool = await asyncpg.create_pool(self._url, min_size=10, max_size=10)
        await self._pool.execute(
            "CREATE TABLE IF NOT EXISTS callbacks (id BIGINT GENERATED ALWAYS AS IDENTITY"
            " PRIMARY KEY, generation_id TEXT NOT NULL, received_at TIMESTAMPTZ NOT NULL,"
            " headers TEXT NOT NULL, body BYTEA NOT NULL);"
            "CREATE INDEX IF NOT EXISTS callbacks_generation ON callbacks (generation_id)"
        )


def main() -> None:
    """Serve the baseline named on the command line."""
    name, port, database = sys.argv[1:]
    apps = {"by-hand": build_by_hand, "asyncpg": InsertEach}
    app = ceiling if name == "ceiling" else apps[name](database)
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=int(port),
        http="httptools",
        loop="uvloop",
        ws="none",
        lifespan="off" if name == "ceiling" else "on",
        access_log=False,
        log_level="warning",
        server_header=False,
        backlog=2_048,
    )


if __name__ == "__main__":
    main()
