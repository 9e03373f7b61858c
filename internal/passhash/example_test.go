package passhash_test

import (
	"context"
	"fmt"

	"userd/internal/passhash"
)

// A service verifies a password at login and replaces a hash that another program
// made, or that is weaker than today's.
func Example() {
	const client = "192.0.2.0/24" // the network that takes the turn
	ctx := context.Background()
	hasher := passhash.New(passhash.Default())

	// Django 5 wrote this hash.
	stored := "pbkdf2_sha256$1000$aBcD1234eFgH5678$Y4lYkhydJc8QouyoCrenGSLT749fOKuITYRJIxqlmNo="
	for range 2 {
		ok, err := hasher.Verify(ctx, client, stored, "correct horse battery")
		fmt.Println("matches:", ok, err)
		stale := hasher.Stale(stored)
		fmt.Println("stale:", stale)
		if ok && stale {
			if stored, err = hasher.Hash(ctx, client, "correct horse battery"); err != nil {
				fmt.Println(err) // passhash.ErrBusy: answer 503
			}
		}
	}
	fmt.Println(stored[:31])
	// Output:
	// matches: true <nil>
	// stale: true
	// matches: true <nil>
	// stale: false
	// $argon2id$v=19$m=19456,t=2,p=1$
}

func ExampleKnown() {
	fmt.Println(passhash.Known("$2b$12$abcdefghijklmnopqrstuuD3mHdCr44zlIZ.VZCaYRpfQhXMYnEo."))
	fmt.Println(passhash.Known("5f4dcc3b5aa765d61d8327deb882cf99")) // MD5
	// Output:
	// true
	// false
}
