package rows_test

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"userd/internal/rows"
)

func Example() {
	format := rows.Format{
		MaxRow:  64 << 10,
		Columns: func(header []string) ([]string, error) { return header, nil },
		Object: func(text []byte) (fields map[string]string, problem string) {
			if json.Unmarshal(text, &fields) != nil {
				return nil, "must have only strings"
			}
			return fields, ""
		},
	}
	for _, text := range []string{
		"name,city\nann,Oslo\nben\n",
		`{"name":"ann","city":"Oslo"}` + "\n" + `{"name":7}`,
	} {
		file, err := rows.NewReader(strings.NewReader(text), format)
		if err != nil {
			fmt.Println(err)
			continue
		}
		for {
			row, err := file.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				fmt.Println("row", row.Number, err)
				break
			}
			fmt.Println("row", row.Number, cmp.Or(row.Problem, row.Fields["name"]))
		}
	}
	// Output:
	// row 2 ann
	// row 3 has 1 field instead of 2
	// row 1 ann
	// row 2 must have only strings
}
