package param_test

import (
	"fmt"

	"userd/internal/param"
)

func Example() {
	p, err := param.ParsePage("limit=2&role=admin", 1000, "role")
	if err != nil {
		panic(err)
	}
	role, _ := param.Word(p.Query, "role", "member", "admin")
	fmt.Println(p.Limit, p.AfterID, role, p.LinkNext("/users", 7))

	_, err = param.Query("rol=admin", "role")
	fmt.Println(err)
	// Output:
	// 2 0 admin </users?after=7&limit=2&role=admin>; rel="next"
	// the parameter "rol" is unknown
}
