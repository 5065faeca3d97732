"""What is known about files, and collections of them."""

from typing import Annotated

from cacheaside_fastapi import ClientSession
from fastapi import APIRouter, Depends
from pydantic import BaseModel, Field

from ..repositories.changes import Change
from ..repositories.media import CollectionView, FilePage, FileView
from ..services import Login, Services
from .common import Id, Page, done, there


class NewFile(BaseModel):
    name: str = Field(min_length=1, max_length=200)
    kind: str = Field(pattern=r"^[a-z]+/[a-z0-9.+-]+$", max_length=100)
    size: int = Field(ge=0, lt=2**40)
    collection_id: int | None = None


class NewCollection(BaseModel):
    title: str = Field(min_length=1, max_length=200)


def routes(services: Services) -> APIRouter:
    router = APIRouter(tags=["media"])
    media = services.repositories.media
    User = Annotated[ClientSession[Login], Depends(services.cookie.required)]

    @router.get("/files/{file_id}")
    def file(file_id: Id) -> FileView:
        return there(media.file(file_id))

    @router.get("/users/{user_id}/files")
    def of_user(user_id: Id, page: Page = 1) -> FilePage:
        return media.of_user(user_id, page)

    @router.post("/files", status_code=201)
    def add(new: NewFile, session: User) -> Change:
        return done(media.add(int(session.user_id), new.name, new.kind, new.size, new.collection_id))

    @router.delete("/files/{file_id}")
    def remove(file_id: Id, session: User) -> Change:
        return done(media.remove(file_id, int(session.user_id)))

    @router.post("/collections", status_code=201)
    def collect(new: NewCollection, session: User) -> Change:
        return media.collect(int(session.user_id), new.title)

    @router.get("/collections/{collection_id}")
    def collection(collection_id: Id) -> CollectionView:
        return there(media.collection(collection_id))

    return router
