"""Deliveries: list them, get one with its attempts, retry one."""

from service.api.call import Answer, Call, answer, answer_list
from service.api.problem import Problem, not_found, subscriber_disabled
from service.model.attempt import Attempt
from service.model.delivery import Delivery
from service.store import deliveries, stats, subscribers
from service.store.database import Transaction


async def list_(call: Call) -> Answer:
    """GET /v1/deliveries."""
    only = deliveries.Filter(
        status=call.query_choice("status", stats.STATUSES),
        subscriber_id=call.query_id("subscriber_id", "sub"),
        event_id=call.query_id("event_id", "evt"),
    )
    page = call.page("dlv")
    rows, after = await call.database.read(deliveries.list_page, page, call.tenant, only)
    return answer_list([deliveries.from_row(row).view() for row in rows], after)


async def get(call: Call) -> Answer:
    """GET /v1/deliveries/{id}: with its attempts."""
    delivery, attempts = await call.database.read(_get_with_attempts, call)
    return answer({**delivery.view(), "attempts": [a.view() for a in attempts]})


async def _get_with_attempts(tx: Transaction, call: Call) -> tuple[Delivery, list[Attempt]]:
    delivery = await _get(tx, call)
    return delivery, await deliveries.attempts(tx, delivery.id)


async def _get(tx: Transaction, call: Call) -> Delivery:
    delivery = await deliveries.get(tx, call.tenant, call.path["id"])
    if delivery is None:
        raise not_found("delivery")
    return delivery


async def retry(call: Call) -> Answer:
    """POST /v1/deliveries/{id}/retry: one more attempt now, also of a dead delivery."""
    return answer((await call.database.write(_retry, call)).view(), 202)


async def _retry(tx: Transaction, call: Call) -> Delivery:
    delivery = await _get(tx, call)
    if delivery.status not in ("pending", "dead"):
        raise Problem(409, "not_retryable", f"The delivery is {delivery.status}.")
    subscriber = await subscribers.get(tx, delivery.subscriber_id)
    if subscriber is None:
        raise Problem(409, "not_retryable", "The subscriber was deleted.")
    if subscriber.status == "disabled":
        raise subscriber_disabled()
    await deliveries.retry(tx, delivery)
    tx.after_commit(call.context.inbox.refill, delivery.subscriber_id)
    return await _get(tx, call)
