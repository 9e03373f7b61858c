package tagged_test

import (
	"fmt"

	"userd/internal/tagged"
)

func Example() {
	key := []byte("a key of 32 random bytes, really")
	s := tagged.Append(key, "cart:", "7.42")
	fmt.Println(s)
	fmt.Println(tagged.Open(key, "cart:", s))
	_, ok := tagged.Open(key, "cart:", "8"+s[1:])
	fmt.Println(ok)
	// Output:
	// 7.42.BwQXIouF3UOEnRBGFbI2rrIu56_UTli0QC2vLRHWBXc
	// 7.42 true
	// false
}
