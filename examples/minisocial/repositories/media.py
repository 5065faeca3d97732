"""What is known about files, and collections of them."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import delete, select

from cacheaside import cached, invalidates
from examples.seed_keys import MediaKeys

from ..database import PAGE, Database, Snapshot, writes
from ..models import Collection, File
from .changes import Change, changed


@dataclass(frozen=True)
class FileView:
    id: int
    owner_id: int
    collection_id: int | None
    name: str
    kind: str
    size: int
    version: int


@dataclass(frozen=True)
class FilePage:
    user_id: int
    page: int
    ids: tuple[int, ...]
    version: int


@dataclass(frozen=True)
class CollectionView:
    id: int
    owner_id: int
    title: str
    file_ids: tuple[int, ...]
    version: int


class Media:
    def __init__(self, database: Database) -> None:
        self.database = database

    @cached(key=MediaKeys.file, ttl=3600, tags=["file:{file_id}"])
    def file(self, file_id: int) -> FileView | None:
        with self.database.reading() as session:
            it = session.get(File, file_id)
            if it is None:
                return None
            return FileView(it.id, it.owner_id, it.collection_id, it.name, it.kind, it.size, session.version)

    @cached(key=MediaKeys.of_user, ttl=900)
    def of_user(self, user_id: int, page: int) -> FilePage:
        with self.database.reading() as session:
            theirs = select(File.id).where(File.owner_id == user_id).order_by(File.id.desc())
            ids = session.scalars(theirs.limit(PAGE).offset(PAGE * (page - 1)))
            return FilePage(user_id, page, tuple(ids), session.version)

    @cached(key=MediaKeys.collection, ttl=3600, tags=["collection:{collection_id}"])
    def collection(self, collection_id: int) -> CollectionView | None:
        with self.database.reading() as session:
            it = session.get(Collection, collection_id)
            files = select(File.id).where(File.collection_id == collection_id).order_by(File.id)
            if it is None:
                return None
            return CollectionView(
                it.id, it.owner_id, it.title, tuple(session.scalars(files)), session.version
            )

    @writes
    @invalidates(tags=changed)
    def add(
        self,
        session: Snapshot,
        owner_id: int,
        name: str,
        kind: str,
        size: int,
        collection_id: int | None = None,
    ) -> Change | None:
        """None if the collection is not the owner's."""
        if collection_id is not None:
            collection = session.get(Collection, collection_id)
            if collection is None or collection.owner_id != owner_id:
                session.rollback()
                return None
        file = session.made(
            File(owner_id=owner_id, name=name, kind=kind, size=size, collection_id=collection_id)
        )
        return Change(session.version, showing(file), file.id)

    @writes
    @invalidates(tags=changed)
    def remove(self, session: Snapshot, file_id: int, owner_id: int) -> Change | None:
        file = session.get(File, file_id)
        if file is None or file.owner_id != owner_id:
            session.rollback()
            return None
        session.execute(delete(File).where(File.id == file_id))
        return Change(session.version, showing(file), file_id)

    @writes
    @invalidates(tags=changed)
    def collect(self, session: Snapshot, owner_id: int, title: str) -> Change:
        collection = session.made(Collection(owner_id=owner_id, title=title))
        return Change(session.version, (f"collection:{collection.id}",), collection.id)


def showing(file: File) -> tuple[str, ...]:
    tags = (f"file:{file.id}", f"media:{file.owner_id}")
    return tags if file.collection_id is None else (*tags, f"collection:{file.collection_id}")
