package validate_test

import (
	"fmt"

	"userd/internal/validate"
)

func Example() {
	policy := validate.Policy{Minimum: 15, Issuer: "https://id.example.com"}
	for _, why := range []string{
		validate.Username("ann"),
		validate.Username("ann@example.com"),
		validate.Email("=ann@example.com"),
		policy.Check("correct horse", "ann", "ann@example.com"),
		policy.Check("correct horse battery", "ann", "ann@example.com"),
	} {
		fmt.Printf("%q\n", why)
	}
	// Output:
	// ""
	// "must be 1 to 80 of the letters A to Z, digits, '.', '_' and '-', beginning with a letter or digit"
	// "must not begin with '-', '=', '+' or '@'"
	// "must have at least 15 characters"
	// ""
}
