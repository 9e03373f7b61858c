package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// sqlFiles are the only files that speak to the database.
var sqlFiles = []string{"store.go", "schema.go", "store_users.go", "store_sessions.go", "store_events.go", "write.go", "import.go", "adopt.go", "backup.go"}

// programFiles parses the program: each file of the package but its tests.
func programFiles(t *testing.T) (*token.FileSet, map[string]*ast.File) {
	t.Helper()
	names, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	fset, files := token.NewFileSet(), make(map[string]*ast.File)
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(fset, name, nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		files[name] = file
	}
	for _, name := range append([]string{"main.go", "handlers.go", "http.go", "auth.go"}, sqlFiles...) {
		if files[name] == nil {
			t.Fatalf("%s is not among the program's files: %v", name, slices.Sorted(maps.Keys(files)))
		}
	}
	return fset, files
}

func imports(t *testing.T, file *ast.File) []string {
	t.Helper()
	var paths []string
	for _, spec := range file.Imports {
		path, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			t.Fatal(err)
		}
		paths = append(paths, path)
	}
	return paths
}

func TestEachImportStandsOnlyWhereItsSubjectLives(t *testing.T) {
	_, files := programFiles(t)
	for name, file := range files {
		for _, path := range imports(t, file) {
			first, _, _ := strings.Cut(path, "/")
			switch {
			case slices.Contains(sqlFiles, name) && (path == "net/http" || strings.HasPrefix(path, "net/http/")):
				t.Errorf("%s imports %s: the store knows nothing of HTTP", name, path)
			case !slices.Contains(sqlFiles, name) && (strings.HasPrefix(path, "database/sql") || strings.HasPrefix(path, "modernc.org/")):
				t.Errorf("%s imports %s: only %v speak to the database", name, path, sqlFiles)
			case path == "C" || path == "unsafe":
				t.Errorf("%s imports %s: userd is pure Go", name, path)
			case strings.Contains(first, ".") && !strings.HasPrefix(path, "modernc.org/sqlite") && !strings.HasPrefix(path, "golang.org/x/crypto/"):
				t.Errorf("%s imports %s: the standard library, SQLite and x/crypto are all there is", name, path)
			}
		}
	}
}

// sqlText finds SQL as this program writes it, with its keywords in capitals.
var sqlText = regexp.MustCompile(`\b(SELECT|INSERT INTO|UPDATE|DELETE FROM|CREATE (TABLE|INDEX)|PRAGMA|COLLATE|BEGIN IMMEDIATE|SAVEPOINT)\s`)

func TestSQLStandsOnlyInTheStore(t *testing.T) {
	fset, files := programFiles(t)
	found := make(map[string]int)
	for name, file := range files {
		ast.Inspect(file, func(n ast.Node) bool {
			literal, ok := n.(*ast.BasicLit)
			if !ok || literal.Kind != token.STRING || !sqlText.MatchString(literal.Value) {
				return true
			}
			found[name]++
			if !slices.Contains(sqlFiles, name) {
				t.Errorf("%s: SQL outside %v: %s", fset.Position(literal.Pos()), sqlFiles, literal.Value)
			}
			return true
		})
	}
	for _, name := range sqlFiles {
		if found[name] == 0 {
			t.Errorf("no SQL found in %s: this test looks for the wrong thing", name)
		}
	}
}

// interfaceMethods are what interfaces of the standard library ask of our types.
var interfaceMethods = []string{"Accept", "Close", "Error", "Flush", "Handle", "Read", "Scan", "ServeHTTP", "String", "Unwrap", "Write", "WriteHeader"}

// A package main exports nothing to anybody. What is lower-case and unused, the
// tools find; what is upper-case could lie dead for years.
func TestNothingIsExported(t *testing.T) {
	fset, files := programFiles(t)
	for _, file := range files {
		ast.Inspect(file, func(n ast.Node) bool {
			var names []*ast.Ident
			what := "is exported by a package main"
			switch n := n.(type) {
			case *ast.FuncDecl:
				if n.Recv != nil && slices.Contains(interfaceMethods, n.Name.Name) {
					break
				}
				names = append(names, n.Name)
			case *ast.TypeSpec:
				names = append(names, n.Name)
			case *ast.ValueSpec:
				names = n.Names
			case *ast.StructType:
				what = "is an upper-case field without a json tag"
				for _, field := range n.Fields.List {
					if field.Tag == nil || !strings.Contains(field.Tag.Value, `json:"`) {
						names = append(names, field.Names...)
					}
				}
			}
			for _, name := range names {
				if name.IsExported() {
					t.Errorf("%s: %s %s", fset.Position(name.Pos()), name.Name, what)
				}
			}
			return true
		})
	}
}

func TestTheModuleRequiresSQLiteAndCryptoAlone(t *testing.T) {
	data, err := os.ReadFile("go.mod")
	if err != nil {
		t.Fatal(err)
	}
	var direct []string
	block := ""
	for line := range strings.Lines(string(data)) {
		code, comment, _ := strings.Cut(line, "//")
		words := strings.Fields(code)
		switch {
		case len(words) == 0:
			continue
		case words[0] == ")":
			block = ""
			continue
		case len(words) == 2 && words[1] == "(":
			block = words[0]
			continue
		case block != "":
			words = append([]string{block}, words...)
		}
		switch words[0] {
		case "module":
			if words[1] != "userd" {
				t.Errorf("the module is %s, want userd", words[1])
			}
		case "require":
			if strings.TrimSpace(comment) != "indirect" {
				direct = append(direct, words[1])
			}
		case "go", "toolchain":
		default:
			t.Errorf("go.mod has a directive that a checkout elsewhere may not follow: %s", strings.TrimSpace(line))
		}
	}
	slices.Sort(direct)
	if want := []string{"golang.org/x/crypto", "modernc.org/sqlite"}; !slices.Equal(direct, want) {
		t.Errorf("go.mod requires %v, want %v and no more", direct, want)
	}
}

func TestSecurityNamesTestsThatExist(t *testing.T) {
	text, err := os.ReadFile("SECURITY.md")
	if err != nil {
		t.Fatal(err)
	}
	names, err := filepath.Glob("*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	var tests []byte
	for _, name := range names {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		tests = append(tests, data...)
	}
	promised := regexp.MustCompile("`((?:Test|Fuzz)\\w+)`").FindAllSubmatch(text, -1)
	if len(promised) < 20 {
		t.Errorf("SECURITY.md names %d tests", len(promised))
	}
	for _, name := range promised {
		if !strings.Contains(string(tests), "func "+string(name[1])+"(") {
			t.Errorf("SECURITY.md names %s, which there is not", name[1])
		}
	}
}
