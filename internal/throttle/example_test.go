package throttle_test

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"userd/internal/throttle"
)

// A login is limited in two ways: failures of one user from one network cost
// time, and one network may try only so many passwords.
func Example() {
	seed := throttle.NewSeed()
	var mu sync.Mutex
	failures := throttle.Delays{Name: "user and network", Free: 3, First: 2 * time.Second, Max: time.Minute, Memory: time.Hour}
	passwords := throttle.Allowance{Name: "network", Burst: 5, Every: time.Second}

	login := func(now time.Duration, user, network, password string) error {
		mu.Lock()
		defer mu.Unlock()
		pair, all := seed.Key(user, network), seed.Key(network)
		if err := errors.Join(failures.Check(pair, now), passwords.Check(all, now)); err != nil {
			return err
		}
		passwords.Take(all, now)
		if password != "correct horse battery" {
			failures.Fail(pair, now)
			return errors.New("wrong password")
		}
		failures.Reset(pair)
		return nil
	}

	for _, password := range []string{"letmein", "123456", "qwerty", "correct horse battery"} {
		fmt.Println(login(0, "ann", "192.0.2.0/24", password))
	}
	fmt.Println(login(2*time.Second, "ann", "192.0.2.0/24", "correct horse battery"))
	// Output:
	// wrong password
	// wrong password
	// wrong password
	// limited by user and network for 2s
	// <nil>
}
