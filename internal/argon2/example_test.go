package argon2_test

import (
	"fmt"
	"log"

	"userd/internal/argon2"
)

// The owner of a Memory uses it for one hash after the other.
func Example() {
	if err := argon2.Check(); err != nil {
		log.Fatal(err) // or use a nil Memory
	}
	mem := argon2.NewMemory() // nil without AVX2, which makes no difference here
	defer mem.Release()
	for _, password := range []string{"correct horse battery", "wrong"} {
		fmt.Printf("%x\n", argon2.Key(mem, []byte(password), []byte("salt of 16 bytes"), 2, 19456, 16))
	}
	// Output:
	// ca3c758b676d0cb2cdd542452a70ca4b
	// 9e4f96b1a26593ea12aff809793e8f60
}
