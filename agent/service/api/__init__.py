"""The HTTP interface as data: requests and answers, operations, problem documents, OpenAPI."""
