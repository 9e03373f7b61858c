package strictjson_test

import (
	"errors"
	"fmt"

	"userd/internal/strictjson"
)

func Example() {
	type login struct {
		Username string `json:"username"`
		Password string `json:"password"`
	}
	for _, text := range []string{
		`{"username": "ann", "password": "correct horse battery"}`,
		`{"username": "ann", "username": "root", "password": "x"}`,
		`{"Username": "ann", "password": "x"}`,
		`{"username": "ann", "password": null}`,
		`{"username": "ann"} {"username": "root"}`,
	} {
		var in login
		err := strictjson.Unmarshal([]byte(text), &in)
		if e, ok := errors.AsType[*strictjson.Error](err); ok {
			fmt.Printf("refused: member %q: %s\n", e.Member, e.Text)
			continue
		}
		fmt.Println("accepted:", in.Username)
	}
	// Output:
	// accepted: ann
	// refused: member "username": appears twice
	// refused: member "Username": is not known
	// refused: member "password": must be a string
	// refused: member "": is not valid JSON
}

func ExampleMembers() {
	text := []byte(`{"sub": "7", "exp": 1777864621, "roles": ["admin"]}`)
	err := strictjson.Members(text, func(name string, value []byte) error {
		fmt.Printf("%s: %s\n", name, value)
		return nil
	})
	fmt.Println(err)
	// Output:
	// sub: "7"
	// exp: 1777864621
	// roles: ["admin"]
	// <nil>
}
