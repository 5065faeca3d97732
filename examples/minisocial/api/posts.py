"""Posts, comments, reactions, the feed by page, and what is trending."""

from dataclasses import dataclass
from typing import Annotated

from cacheaside_fastapi import ClientSession, rate_limit
from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, Field

from ..repositories.changes import Change
from ..repositories.posts import Comments, PostView, Reactions
from ..services import Login, Services
from .common import Id, Page, done, there


class Body(BaseModel):
    body: str = Field(min_length=1, max_length=5000)


class Kind(BaseModel):
    kind: str = Field(pattern="^(like|love|laugh|sad|angry)$")


@dataclass
class Feed:
    user_id: int
    page: int
    posts: list[PostView]
    version: int


def routes(services: Services) -> APIRouter:
    router = APIRouter(tags=["posts"])
    posts, notifications = services.repositories.posts, services.repositories.notifications
    User = Annotated[ClientSession[Login], Depends(services.cookie.required)]

    async def noted(session: User, request: Request) -> None:
        request.state.user_id = session.user_id

    posting = [
        Depends(noted),
        Depends(rate_limit(services.posting, key=lambda request: request.state.user_id)),
    ]

    @router.get("/feed")
    def feed(session: User, page: Page = 1) -> Feed:
        """Of who is logged in. A post that was deleted a moment ago leaves a gap."""
        found = posts.feed(int(session.user_id), page)
        by_id = posts.find(found.post_ids)
        return Feed(
            found.user_id, page, [by_id[one] for one in found.post_ids if one in by_id], found.version
        )

    @router.get("/trending")
    def trending() -> list[PostView]:
        ids = posts.trending()
        by_id = posts.find(ids)
        return [by_id[one] for one in ids if one in by_id]

    @router.get("/posts/{post_id}")
    def read(post_id: Id) -> PostView:
        return there(posts.get(post_id))

    @router.get("/posts/{post_id}/comments")
    def comments(post_id: Id) -> Comments:
        return posts.comments(post_id)

    @router.get("/posts/{post_id}/reactions")
    def reactions(post_id: Id) -> Reactions:
        return posts.reactions(post_id)

    @router.post("/posts", status_code=201, dependencies=posting)
    def create(new: Body, session: User) -> Change:
        return posts.create(int(session.user_id), new.body)

    @router.put("/posts/{post_id}")
    def edit(post_id: Id, new: Body, session: User) -> Change:
        return done(posts.edit(post_id, int(session.user_id), new.body))

    @router.delete("/posts/{post_id}")
    def delete(post_id: Id, session: User) -> Change:
        return done(posts.delete(post_id, int(session.user_id)))

    @router.post("/posts/{post_id}/comments", status_code=201, dependencies=posting)
    def comment(post_id: Id, new: Body, session: User) -> Change:
        change = done(posts.comment(post_id, int(session.user_id), new.body))
        post = posts.get(post_id)
        if post is not None and post.author_id != session.user_id:
            notifications.notify([post.author_id], "comment", f"post {post_id}")
        return change

    @router.put("/posts/{post_id}/reaction")
    def react(post_id: Id, new: Kind, session: User) -> Change:
        return done(posts.react(post_id, int(session.user_id), new.kind))

    @router.delete("/posts/{post_id}/reaction")
    def take_back(post_id: Id, session: User) -> Change:
        return done(posts.react(post_id, int(session.user_id), None))

    return router
