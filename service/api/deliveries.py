"""Deliveries: list them, get one with its attempts, retry one."""

from service.api.call import Answer, Call, answer, answer_page, get_own, lock_own
from service.api.problem import Problem, subscriber_disabled
from service.model.attempt import Attempt
from service.model.delivery import STATUSES, Delivery
from service.model.subscriber import Subscriber
from service.store import deliveries, rows
from service.store.database import Transaction


async def list_(call: Call) -> Answer:
    """GET /v1/deliveries."""
    status = call.query_choice("status", STATUSES)
    prefixes = {"subscriber_id": "sub", "event_id": "evt", "generation_id": "gen"}
    ids = {name: call.query_id(name, prefix) for name, prefix in prefixes.items()}
    only = deliveries.Filter(status=status, **ids)
    return await answer_page(call, "dlv", Delivery, deliveries.list_page, only)


async def get(tx: Transaction, call: Call) -> Answer:
    """GET /v1/deliveries/{id}: with its attempts."""
    delivery = await get_own(tx, call, Delivery)
    attempts = await rows.read_all(tx, Attempt, "attempts_of_delivery", delivery_id=delivery.id)
    return answer({**delivery.view(), "attempts": [attempt.view() for attempt in attempts]})


async def retry(tx: Transaction, call: Call) -> Answer:
    """POST /v1/deliveries/{id}/retry: one more attempt now, also of a dead delivery."""
    delivery = await lock_own(tx, call, Delivery)
    if delivery.status not in ("pending", "dead"):
        raise Problem(409, "not_retryable", f"The delivery is {delivery.status}.")
    subscriber = await rows.read_by_id(tx, Subscriber, delivery.subscriber_id)
    if subscriber is None:
        raise Problem(409, "not_retryable", "The subscriber was deleted.")
    if subscriber.status == "disabled":
        raise subscriber_disabled()
    await deliveries.retry(tx, delivery)
    tx.after_commit(call.context.inbox.refill, delivery.subscriber_id)
    return answer((await get_own(tx, call, Delivery)).view(), 202)
