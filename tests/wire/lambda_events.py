"""Events as AWS's documentation shows them; method, path, headers and body are the caller's."""

from typing import Any

ACCOUNT = "123456789012"
CLIENT = {"sourceIp": "192.0.2.1", "userAgent": "agent"}


def rest_api(method: str, path: str, headers: dict[str, str], body: str | None) -> dict[str, Any]:
    """A REST API; https://docs.aws.amazon.com/lambda/latest/dg/services-apigateway.html."""
    path, _, query = path.partition("?")
    parameters = dict(pair.split("=") for pair in query.split("&")) if query else None
    return {
        "resource": "/{proxy+}",
        "path": path,
        "httpMethod": method,
        "requestContext": {
            "resourcePath": "/{proxy+}",
            "httpMethod": method,
            "path": f"/Prod{path}",
        },
        "headers": {"Host": "70ixmpl4fl.execute-api.us-east-2.amazonaws.com", **headers},
        "multiValueHeaders": {name: [value] for name, value in headers.items()},
        "queryStringParameters": parameters,
        "multiValueQueryStringParameters": parameters and {n: [v] for n, v in parameters.items()},
        "pathParameters": None,
        "stageVariables": None,
        "body": body,
        "isBase64Encoded": False,
    }


# https://docs.aws.amazon.com/apigateway/latest/developerguide/http-api-develop-integrations-lambda.html
def http_api_v1(method: str, path: str, headers: dict[str, str], body: str | None) -> Any:
    """An HTTP API with the payload format 1.0."""
    context = {
        "accountId": ACCOUNT,
        "apiId": "id",
        "authorizer": {"claims": None, "scopes": None},
        "domainName": "id.execute-api.us-east-1.amazonaws.com",
        "domainPrefix": "id",
        "extendedRequestId": "request-id",
        "httpMethod": method,
        "identity": {"sourceIp": "192.0.2.1", "userAgent": "user-agent"},
        "path": path.partition("?")[0],
        "protocol": "HTTP/1.1",
        "requestId": "id=",
        "requestTime": "04/Mar/2020:19:15:17 +0000",
        "requestTimeEpoch": 1583349317135,
        "stage": "$default",
    }
    return {"version": "1.0", **rest_api(method, path, headers, body), "requestContext": context}


def http_api_v2(
    method: str,
    path: str,
    headers: dict[str, str],
    body: str | None,
    *,
    domain: str = "id.execute-api.us-east-1.amazonaws.com",
    stage: str = "$default",
) -> dict[str, Any]:
    """An HTTP API with the payload format 2.0. A stage with a name is in front of its paths."""
    path, _, query = path.partition("?")
    path = path if stage == "$default" else f"/{stage}{path}"
    event = {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": path,
        "rawQueryString": query,
        "headers": {name.lower(): value for name, value in headers.items()},
        "requestContext": {
            "accountId": ACCOUNT,
            "apiId": domain.partition(".")[0],
            "authentication": None,
            "domainName": domain,
            "domainPrefix": domain.partition(".")[0],
            "http": {"method": method, "path": path, "protocol": "HTTP/1.1", **CLIENT},
            "requestId": "id",
            "routeKey": "$default",
            "stage": stage,
            "time": "12/Mar/2020:19:03:58 +0000",
            "timeEpoch": 1583348638390,
        },
        "isBase64Encoded": False,
    }
    if query:
        event["queryStringParameters"] = dict(pair.split("=") for pair in query.split("&"))
    return event | ({"body": body} if body is not None else {})


# https://docs.aws.amazon.com/lambda/latest/dg/urls-invocation.html#urls-payloads
def function_url(method: str, path: str, headers: dict[str, str], body: str | None) -> Any:
    """A function URL, without authorization by IAM."""
    domain = "abcdefg.lambda-url.us-west-2.on.aws"
    event = http_api_v2(method, path, {"host": domain, **headers}, body, domain=domain)
    event["requestContext"]["authorizer"] = None
    return {**event, "pathParameters": None, "stageVariables": None}


# https://docs.aws.amazon.com/lambda/latest/dg/services-cloudwatchevents.html
SCHEDULE: dict[str, Any] = {
    "version": "0",
    "account": ACCOUNT,
    "region": "us-east-2",
    "detail": {},
    "detail-type": "Scheduled Event",
    "source": "aws.events",
    "time": "2019-03-01T01:23:45Z",
    "id": "cdc73f9d-aea9-11e3-9d5a-835b769c0d9c",
    "resources": ["arn:aws:events:us-east-2:123456789012:rule/my-schedule"],
}


def load_balancer(method: str, path: str, headers: dict[str, str], body: str | None) -> Any:
    """A load balancer; https://docs.aws.amazon.com/lambda/latest/dg/services-alb.html."""
    path, _, query = path.partition("?")
    group = (
        f"arn:aws:elasticloadbalancing:us-east-2:{ACCOUNT}:targetgroup/lambda-279XGJDqGZ5rsrHC2Fjr"
    )
    return {
        "requestContext": {"elb": {"targetGroupArn": f"{group}/49e9d65c45c6791a"}},
        "httpMethod": method,
        "path": path,
        "queryStringParameters": dict(pair.split("=") for pair in query.split("&"))
        if query
        else {},
        "headers": {"host": "lambda-alb-123578498.us-east-2.elb.amazonaws.com", **headers},
        "body": body or "",
        "isBase64Encoded": False,
    }


# https://docs.aws.amazon.com/apigateway/latest/developerguide/apigateway-websocket-api-route-keys-connect-disconnect.html
WEBSOCKET = {
    "headers": {"Host": "abcd1234.execute-api.us-east-1.amazonaws.com"},
    "requestContext": {
        "routeKey": "$connect",
        "eventType": "CONNECT",
        "connectionId": "L0SM9cOFvHcCIhw=",
        "stage": "Prod",
        "apiId": "abcd1234",
    },
    "isBase64Encoded": False,
}
