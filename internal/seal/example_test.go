package seal_test

import (
	"bytes"
	"fmt"

	"userd/internal/seal"
)

func Example() {
	r, err := seal.NewRing(bytes.Repeat([]byte{1}, seal.KeySize))
	if err != nil {
		fmt.Println(err)
		return
	}
	sealed := r.Seal([]byte("secret"), "user 7")
	text, err := r.Open(sealed, "user 7")
	fmt.Printf("%s %v\n", text, err)
	_, err = r.Open(sealed, "user 8")
	fmt.Println(err)
	// Output:
	// secret <nil>
	// this sealed text was changed, or has another name
}
