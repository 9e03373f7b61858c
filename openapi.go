package main

import (
	_ "embed"
	"net/http"
)

// openAPI is the OpenAPI document of the routes. It is written by hand: what is
// made from code says what the code does, and so cannot be held against it.
//
//go:embed openapi.json
var openAPI []byte

func (s *server) describe(x *exchange) error {
	return x.send(http.StatusOK, openAPI)
}
