package apikey_test

import (
	"fmt"

	"userd/internal/apikey"
)

func Example() {
	key := apikey.New() // show it to the owner once
	stored := map[string]string{string(apikey.Hash(key)): "backup job"}

	fmt.Println(len(key), apikey.Valid(key), stored[string(apikey.Hash(key))])
	fmt.Println(apikey.Valid("ud_0123456789ABCDEFGHIJKLMNOPQRST2UDHSO")) // O instead of 0
	fmt.Println(apikey.Prefix("ud_0123456789ABCDEFGHIJKLMNOPQRST2UDHS0"))
	// Output:
	// 39 true backup job
	// false
	// ud_01234
}
