"""Signatures of requests to S3, against the worked examples that Amazon published."""

from datetime import UTC, datetime

from dflare.kit.s3_signature import Credentials, encode_path, encode_query, signed_headers

# The keys, host, time and signatures of "Examples: Signature Calculations" in the Amazon S3 API
# Reference, Authorization Header.
CREDENTIALS = Credentials(
    "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "us-east-1"
)
HOST = "examplebucket.s3.amazonaws.com"
NOW = datetime(2013, 5, 24, tzinfo=UTC)
EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def signature(method: str, path: str, query: dict[str, str], headers: dict[str, str]) -> str:
    payload = headers.pop("payload", EMPTY)
    signed = signed_headers(CREDENTIALS, method, HOST, path, query, headers, NOW, payload)
    return signed["authorization"].rpartition("Signature=")[2]


def test_a_ranged_get_is_signed_as_amazon_signs_it() -> None:
    assert (
        signature("GET", "/test.txt", {}, {"range": "bytes=0-9"})
        == "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
    )


def test_a_put_with_a_key_to_escape_is_signed_as_amazon_signs_it() -> None:
    assert (
        signature(
            "PUT",
            "/test$file.text",
            {},
            {
                "date": "Fri, 24 May 2013 00:00:00 GMT",
                "x-amz-storage-class": "REDUCED_REDUNDANCY",
                "payload": "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072",
            },
        )
        == "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd"
    )


def test_a_query_without_value_and_a_list_are_signed_as_amazon_signs_them() -> None:
    assert (
        signature("GET", "/", {"lifecycle": ""}, {})
        == "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"
    )
    assert (
        signature("GET", "/", {"max-keys": "2", "prefix": "J"}, {})
        == "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"
    )


def test_what_is_sent_is_escaped_as_it_is_signed() -> None:
    assert encode_path("/b/a b+c/ü:sha256") == "/b/a%20b%2Bc/%C3%BC%3Asha256"
    assert encode_query({"b": "x/y", "a": "1 2"}) == "a=1%202&b=x%2Fy"
