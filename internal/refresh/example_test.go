package refresh_test

import (
	"fmt"

	"userd/internal/refresh"
)

func Example() {
	key := refresh.Key("32 random bytes of the database.")
	first := refresh.New(7)
	presented, ok := key.Parse(key.Format(&first))
	next := key.Next(presented)
	fmt.Println(ok, next.Session, next.Generation)
	// Output: true 7 1
}
