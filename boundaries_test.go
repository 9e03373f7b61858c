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

// A layer is a part of the program whose files refer only to it and to lower layers.
type layer struct {
	name  string
	files []string
}

// layers are the program's files by layer, the highest layer first.
var layers = []layer{
	{"program", []string{"main.go", "serve.go"}},
	{"commands", []string{"cli.go", "cli_users.go", "cli_data.go", "import.go", "backup.go"}},
	{"HTTP", []string{"handlers.go", "console.go", "users.go", "sessions.go", "codes.go", "registrations.go", "factors.go", "keys.go", "outbox.go", "http.go", "auth.go", "limits.go"}},
	{"store", []string{"store.go", "schema.go", "adopt.go", "store_users.go", "store_sessions.go", "store_codes.go", "store_emails.go", "store_factors.go", "store_keys.go", "store_mail.go", "store_events.go"}},
	{"base", []string{"config.go", "errors.go"}},
}

// sqlFiles are the only files that use the database: the store, and the commands
// that work on a whole database file.
var sqlFiles = []string{"store.go", "schema.go", "store_users.go", "store_sessions.go", "store_codes.go", "store_emails.go", "store_factors.go", "store_keys.go", "store_mail.go", "store_events.go", "import.go", "backup.go", "adopt.go"}

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

// A reference is the use of a top-level name or method of another file.
type reference struct{ from, to, name string }

// references returns what each file uses of the others. A method counts if no
// other file has a method or a field of its name: the parser knows no types. A
// method's receiver is not a use: it says where the method belongs.
func references(files map[string]*ast.File) []reference {
	names, methods, fields := make(map[string]string), make(map[string][]string), make(map[string]bool)
	for name, file := range files {
		for _, decl := range file.Decls {
			switch d := decl.(type) {
			case *ast.FuncDecl:
				if d.Recv == nil {
					names[d.Name.Name] = name
				} else {
					methods[d.Name.Name] = append(methods[d.Name.Name], name)
				}
			case *ast.GenDecl:
				for _, spec := range d.Specs {
					switch s := spec.(type) {
					case *ast.TypeSpec:
						names[s.Name.Name] = name
					case *ast.ValueSpec:
						for _, id := range s.Names {
							names[id.Name] = name
						}
					}
				}
			}
		}
		ast.Inspect(file, func(n ast.Node) bool {
			if s, ok := n.(*ast.StructType); ok {
				for _, field := range s.Fields.List {
					for _, id := range field.Names {
						fields[id.Name] = true
					}
				}
			}
			return true
		})
	}
	found := make(map[reference]bool)
	for name, file := range files {
		receivers, packages := make(map[*ast.Ident]bool), make(map[string]bool)
		for _, spec := range file.Imports {
			path := strings.Trim(spec.Path.Value, `"`)
			packages[path[strings.LastIndexByte(path, '/')+1:]] = true
		}
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncDecl:
				if n.Recv != nil {
					ast.Inspect(n.Recv, func(n ast.Node) bool {
						if id, ok := n.(*ast.Ident); ok {
							receivers[id] = true
						}
						return true
					})
				}
			case *ast.SelectorExpr:
				if id, ok := n.X.(*ast.Ident); ok && packages[id.Name] {
					return true
				}
				if to := methods[n.Sel.Name]; len(to) == 1 && to[0] != name && !fields[n.Sel.Name] && !slices.Contains(interfaceMethods, n.Sel.Name) {
					found[reference{name, to[0], n.Sel.Name}] = true
				}
			}
			return true
		})
		for _, id := range file.Unresolved { // in this file, so the name is another's or Go's
			if to := names[id.Name]; to != "" && to != name && !receivers[id] {
				found[reference{name, to, id.Name}] = true
			}
		}
	}
	return slices.Collect(maps.Keys(found))
}

func TestFilesReferOnlyToTheirLayerAndLowerOnes(t *testing.T) {
	t.Parallel()
	_, files := programFiles(t)
	level := make(map[string]int)
	for i, layer := range layers {
		for _, name := range layer.files {
			level[name] = i
			if files[name] == nil {
				t.Errorf("%s does not exist, but the layer %q lists it", name, layer.name)
			}
		}
	}
	for name := range files {
		if _, ok := level[name]; !ok {
			t.Errorf("no layer lists %s", name)
		}
	}
	refs := references(files)
	uses := make(map[[2]string]bool)
	for _, r := range refs {
		uses[[2]string{r.from, r.to}] = true
		if level[r.to] < level[r.from] {
			t.Errorf("%s (%s) uses %s of %s (%s), a higher layer", r.from, layers[level[r.from]].name, r.name, r.to, layers[level[r.to]].name)
		}
	}
	if len(refs) < 300 {
		t.Errorf("only %d references found", len(refs))
	}
	var mutual []string
	for pair := range uses {
		if pair[0] < pair[1] && uses[[2]string{pair[1], pair[0]}] {
			mutual = append(mutual, pair[0]+" and "+pair[1])
		}
	}
	slices.Sort(mutual)
	if len(mutual) > maxMutual {
		t.Errorf("%d pairs of files use each other, at most %d may:\n%s", len(mutual), maxMutual, strings.Join(mutual, "\n"))
	}
}

// maxMutual is how many pairs of files may use each other.
const maxMutual = 5

func TestProgramFilesAndFunctionsAreShort(t *testing.T) {
	t.Parallel()
	fset, files := programFiles(t)
	const mostFiles, mostLines, mostOfFunction = 32, 500, 60
	if len(files) > mostFiles {
		t.Errorf("%d program files, want at most %d", len(files), mostFiles)
	}
	for name, file := range files {
		if n := fset.File(file.Pos()).LineCount() - 1; n > mostLines {
			t.Errorf("%s has %d lines, want at most %d", name, n, mostLines)
		}
		for _, decl := range file.Decls {
			if f, ok := decl.(*ast.FuncDecl); ok {
				if n := fset.Position(f.End()).Line - fset.Position(f.Pos()).Line + 1; n > mostOfFunction {
					t.Errorf("%s: %s has %d lines, want at most %d", name, f.Name.Name, n, mostOfFunction)
				}
			}
		}
	}
}

func TestEachImportIsOnlyUsedInItsLayer(t *testing.T) {
	t.Parallel()
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

func TestSQLIsOnlyInTheStore(t *testing.T) {
	t.Parallel()
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

// interfaceMethods are the methods that interfaces of the standard library require.
var interfaceMethods = []string{"Accept", "Close", "Error", "Flush", "Handle", "Read", "Scan", "ServeHTTP", "String", "Unwrap", "Write", "WriteHeader"}

// No package can import package main. Tools find unused lower-case names, but they do not
// report unused upper-case names.
func TestNothingIsExported(t *testing.T) {
	t.Parallel()
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

func TestTheModuleRequiresOnlySQLiteAndCrypto(t *testing.T) {
	t.Parallel()
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
		case "go":
			// A floor without a patch, or with patch 0, allows builds with the known
			// vulnerabilities of the first release.
			if !regexp.MustCompile(`^1\.[0-9]+\.[1-9][0-9]*$`).MatchString(words[1]) {
				t.Errorf("go.mod requires Go %s, want a patch release such as 1.26.8", words[1])
			}
		case "toolchain":
		default:
			t.Errorf("go.mod has a directive that a checkout elsewhere may not follow: %s", strings.TrimSpace(line))
		}
	}
	slices.Sort(direct)
	if want := []string{"golang.org/x/crypto", "modernc.org/sqlite"}; !slices.Equal(direct, want) {
		t.Errorf("go.mod requires %v, want %v and no more", direct, want)
	}
}

func TestTheWorkflowLooksForVulnerabilities(t *testing.T) {
	t.Parallel()
	workflow, err := os.ReadFile(".github/workflows/ci.yml")
	if err != nil {
		t.Fatal(err)
	}
	pinned := regexp.MustCompile(`(?m)^ +- run: go run golang\.org/x/vuln/cmd/govulncheck@v[0-9.]+ \./\.\.\.$`)
	if !pinned.Match(workflow) {
		t.Errorf("no step matches %s", pinned)
	}
}

func TestSecurityNamesTestsThatExist(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("SECURITY.md")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, pattern := range []string{"*_test.go", "internal/*/*_test.go"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, found...)
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
			t.Errorf("SECURITY.md names the test %s, which does not exist", name[1])
		}
	}
}
