package param_test

import (
	"fmt"

	"userd/internal/param"
)

func Example() {
	q, err := param.Query("limit=2&role=admin", "limit", "after", "role")
	if err != nil {
		panic(err)
	}
	limit, after, _ := param.Page(q, 1000)
	fmt.Println(limit, after, param.LinkNext("/users", q, 7))

	_, err = param.Query("rol=admin", "role")
	fmt.Println(err)
	// Output:
	// 2 0 </users?after=7&limit=2&role=admin>; rel="next"
	// the parameter "rol" is unknown
}
