package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

// maxReadmeLines and maxColumns bound the README, which is a front page.
const (
	maxReadmeLines = 160
	maxColumns     = 100
)

// documentation returns the text of the documents at the top level, of each page of docs/ and of
// the examples, by path.
func documentation(t *testing.T) map[string]string {
	t.Helper()
	paths := []string{"README.md", "SECURITY.md", "CHANGELOG.md", "examples/README.md"}
	for _, pattern := range []string{"docs/*.md", "examples/*/README.md"} {
		found, err := filepath.Glob(pattern)
		if err != nil || found == nil {
			t.Fatalf("%s: %v", pattern, err)
		}
		paths = append(paths, found...)
	}
	texts := make(map[string]string)
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		texts[filepath.ToSlash(path)] = string(data)
	}
	return texts
}

func TestTheReadmeIsAFrontPage(t *testing.T) {
	t.Parallel()
	text := documentation(t)["README.md"]
	if n := strings.Count(text, "\n"); n > maxReadmeLines {
		t.Errorf("README.md has %d lines, more than %d", n, maxReadmeLines)
	}
	for line := range strings.Lines(text) {
		if n := utf8.RuneCountInString(strings.TrimSpace(line)); n > maxColumns {
			t.Errorf("README.md has a line of %d columns, more than %d: %s", n, maxColumns, line)
		}
	}
	for _, command := range []string{"go run .", "go test ./..."} {
		if !strings.Contains(text, "\n"+command+"\n") {
			t.Errorf("README.md does not show the command %q", command)
		}
	}
}

// notInAnchors are the characters that GitHub drops from a heading to make its anchor.
var notInAnchors = regexp.MustCompile(`[^\p{L}\p{N}_ -]`)

// headingAnchors returns the anchors of a page's headings.
func headingAnchors(text string) map[string]bool {
	found := make(map[string]bool)
	for _, heading := range regexp.MustCompile(`(?m)^#+ (.+)$`).FindAllStringSubmatch(text, -1) {
		plain := notInAnchors.ReplaceAllString(strings.ToLower(heading[1]), "")
		found[strings.ReplaceAll(plain, " ", "-")] = true
	}
	return found
}

func TestLinksInTheDocumentationResolve(t *testing.T) {
	t.Parallel()
	texts := documentation(t)
	checked := 0
	for path, text := range texts {
		for _, link := range regexp.MustCompile(`\]\(([^)\s]+)\)`).FindAllStringSubmatch(text, -1) {
			if strings.Contains(link[1], "://") {
				continue
			}
			checked++
			file, anchor, _ := strings.Cut(link[1], "#")
			target := path
			if file != "" {
				target = filepath.ToSlash(filepath.Join(filepath.Dir(path), file))
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s links to %s, which does not exist", path, link[1])
			} else if anchor != "" && !headingAnchors(texts[target])[anchor] {
				t.Errorf("%s links to %s, but %s has no such heading", path, link[1], target)
			}
		}
	}
	if checked < 50 {
		t.Errorf("only %d links were checked", checked)
	}
}

func TestTheDocumentationListsEachTypeOfEventOnce(t *testing.T) {
	t.Parallel()
	_, table, _ := strings.Cut(documentation(t)["docs/events.md"], "\n### Types\n")
	table, _, _ = strings.Cut(table, "\n\nThese are not events")
	var listed []eventType
	for _, row := range regexp.MustCompile("(?m)^\\| `([a-z_]+)` \\| ").FindAllStringSubmatch(table, -1) {
		if row[1] != "type" {
			listed = append(listed, eventType(row[1]))
		}
	}
	if !slices.Equal(listed, eventTypes) {
		t.Errorf("the page lists %v, want %v", listed, eventTypes)
	}
}

// Each page of docs/ can be reached from the table of contents.
func TestTheTableOfContentsIsComplete(t *testing.T) {
	t.Parallel()
	texts := documentation(t)
	for path := range texts {
		name, inDocs := strings.CutPrefix(path, "docs/")
		if inDocs && name != "README.md" && !strings.Contains(texts["docs/README.md"], "]("+name+")") {
			t.Errorf("docs/README.md does not link to %s", name)
		}
	}
}

func TestTheDocumentationListsEachCommandAndRoute(t *testing.T) {
	t.Parallel()
	texts := documentation(t)
	for _, cmd := range table().Commands {
		if !regexp.MustCompile(`(?m)^    userd `+cmd.Words+`\b`).MatchString(texts["docs/cli.md"]) && cmd.Words != "" {
			t.Errorf("docs/cli.md does not list userd %s", cmd.Words)
		}
	}
	var table []string
	for line := range strings.Lines(texts["docs/api.md"]) {
		if cells := strings.Split(line, " | "); strings.HasPrefix(line, "| `") {
			table = append(table, cells[0])
		}
	}
	for _, rt := range new(server).routes() {
		method, path, _ := strings.Cut(rt.pattern, " ")
		listed := func(cell string) bool {
			return strings.Contains(cell, method) && regexp.MustCompile(` `+regexp.QuoteMeta(path)+"[ `]").MatchString(cell+" ")
		}
		if !slices.ContainsFunc(table, listed) {
			t.Errorf("docs/api.md does not list %s", rt.pattern)
		}
	}
}

// A flag is written as `-flag`, or after a command as in `user totp -on`.
func TestTheDocumentationNamesNoFlagThatDoesNotExist(t *testing.T) {
	t.Parallel()
	commands := table()
	flags := make(map[string]bool)
	for _, other := range strings.Fields("-help -all -env -wal -shm -journal -tags -timing -peers") { // of help, SQLite's files and go
		flags[other] = true
	}
	var words []string
	for i := range commands.Commands {
		cmd := &commands.Commands[i]
		set, _ := commands.FlagSet(cmd, make(map[string]string))
		set.VisitAll(func(f *flag.Flag) { flags["-"+f.Name] = true })
		words = append(words, strings.ReplaceAll(cmd.Words, " ", `\s`))
	}
	named := regexp.MustCompile("`(?:userd )?(?:(?:" + strings.Join(words, "|") + `)\s)?(-[a-z][a-z-]+)`)
	checked := 0
	for path, text := range documentation(t) {
		if path == "CHANGELOG.md" {
			continue // it names flags of earlier versions
		}
		for _, found := range named.FindAllStringSubmatch(text, -1) {
			checked++
			if !flags[found[1]] {
				t.Errorf("%s names the flag %s, which does not exist: %s", path, found[1], found[0])
			}
		}
	}
	if checked < 20 {
		t.Errorf("only %d flags were checked", checked)
	}
}

// SECURITY.md has a row for each requirement of levels 1 and 2 of OWASP ASVS 5.0 on authentication
// and sessions. These have the first numbers of each section; those of level 3 follow. Section 6.7
// is not in the table, because all of its requirements are of level 3.
func TestTheTableOfASVSIsComplete(t *testing.T) {
	t.Parallel()
	sections := []struct {
		id           string
		requirements int
	}{
		{"6.1", 3}, {"6.2", 12}, {"6.3", 4}, {"6.4", 4}, {"6.5", 5}, {"6.6", 3}, {"6.8", 4},
		{"7.1", 3}, {"7.2", 4}, {"7.3", 2}, {"7.4", 5}, {"7.5", 2}, {"7.6", 2},
	}
	var want, got []string
	for _, s := range sections {
		for i := range s.requirements {
			want = append(want, fmt.Sprintf("%s.%d", s.id, i+1))
		}
	}
	row := regexp.MustCompile(`(?m)^\| (\S+) \| [12] \| [^|]+ \| (?:yes|no|in part|operator|–) \| [^|]+ \|$`)
	for _, match := range row.FindAllStringSubmatch(documentation(t)["SECURITY.md"], -1) {
		got = append(got, match[1])
	}
	if !slices.Equal(got, want) {
		t.Errorf("the rows are %v, want %v", got, want)
	}
}
