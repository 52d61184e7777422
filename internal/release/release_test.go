package main

import (
	"cmp"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestAPI holds the API of this work tree to the version that CHANGELOG.md announces.
func TestAPI(t *testing.T) {
	version, err := nextVersion("../..")
	require.NoError(t, err)
	require.NoError(t, checkAPI("../..", version))
}

// TestModulesRequireTheLastRelease holds the nested modules to one version of the root
// and of each other. Before the first release it is the one to come.
func TestModulesRequireTheLastRelease(t *testing.T) {
	last, err := lastRelease("../..")
	require.NoError(t, err)
	next, err := nextVersion("../..")
	require.NoError(t, err)
	required := run(t, "../..", "git", "grep", "--untracked", "-ohE", rootPath+"(/[a-z]+)? v[^ ]+", "--", "*go.mod")
	for line := range strings.SplitSeq(required, "\n") {
		require.Equal(t, cmp.Or(last, next), strings.Fields(line)[1], line)
	}
}

// TestFurniture holds the workflow and dependabot's list to the modules that there are.
func TestFurniture(t *testing.T) {
	modules := run(t, "../..", "git", "ls-files", "--cached", "--others", "--exclude-standard", "go.mod", "*/go.mod")
	updated := read(t, "../..", ".github/dependabot.yml")
	for name := range strings.FieldsSeq(modules) {
		dir := strings.TrimSuffix("/"+name, "go.mod")
		require.Contains(t, updated, "directory: "+cmp.Or(strings.TrimSuffix(dir, "/"), "/")+"\n")
	}
	_, version, _ := strings.Cut(read(t, "../..", "go.mod"), "\ngo ")
	oldest := strings.Join(strings.Split(strings.TrimSpace(version[:6]), ".")[:2], ".")
	require.Contains(t, read(t, "../..", ".github/workflows/test.yml"), "go: [\""+oldest+"\", ")
}

// TestReleaseRefuses makes releases of a small repository whose API changes.
func TestReleaseRefuses(t *testing.T) {
	identity(t)
	const before = "package ganbauth\n\nfunc Login(name string) {}\n"
	for _, c := range []struct {
		name, last, next, after, store string
		refused                        string // a part of the error
	}{
		{name: "a patch that adds", last: "0.1.0", next: "0.1.1", after: before + "\nfunc Logout() {}\n"},
		{name: "a patch that changes", last: "0.1.0", next: "0.1.1", after: "package ganbauth\n\nfunc Login(name []byte) {}\n",
			refused: "Login: changed from func(string) to func([]byte)"},
		{name: "a patch that removes", last: "0.1.0", next: "0.1.1", after: "package ganbauth\n", refused: "Login: removed"},
		{name: "a minor version that removes", last: "0.1.0", next: "0.2.0", after: "package ganbauth\n"},
		{name: "a minor version after 1.0.0 that removes", last: "1.0.0", next: "1.1.0", after: "package ganbauth\n",
			refused: "Login: removed"},
		{name: "a store that changes", last: "0.1.0", next: "0.1.1", after: before, store: "package redisstore\n",
			refused: "New: removed"},
		{name: "a released version", last: "0.1.0", next: "0.1.0", after: before, refused: "v0.1.0 is released"},
		{name: "another module path", last: "1.0.0", next: "2.0.0", after: before, refused: "end in /v2"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			run(t, dir, "git", "init", "--quiet")
			write(t, dir, "go.mod", "module "+rootPath+"\n\ngo 1.25.0\n")
			write(t, dir, "ganbauth.go", before)
			write(t, dir, "internal/words/words.go", "package words\n\nfunc Word() {}\n")
			write(t, dir, "redisstore/go.mod", "module "+rootPath+"/redisstore\n\ngo 1.25.0\n\n"+
				"replace "+rootPath+" => ../\n\nrequire "+rootPath+" v0.0.0\n")
			write(t, dir, "redisstore/store.go", "package redisstore\n\nimport _ \""+rootPath+"\"\n\nfunc New() {}\n")
			write(t, dir, "CHANGELOG.md", "# Changelog\n\n## "+c.last+" - unreleased\n\n- First.\n")
			commit(t, dir)
			out := &strings.Builder{}
			require.NoError(t, release(dir, false, out))
			require.Contains(t, out.String(), "git push --atomic origin HEAD v"+c.last+" redisstore/v"+c.last+"\n")
			require.Contains(t, read(t, dir, "redisstore/go.mod"), "require "+rootPath+" v"+c.last)

			write(t, dir, "ganbauth.go", c.after)
			write(t, dir, "internal/words/words.go", "package words\n")
			if c.store != "" {
				write(t, dir, "redisstore/store.go", c.store)
			}
			changelog := read(t, dir, "CHANGELOG.md")
			require.Contains(t, changelog, "\n\n## "+c.last+" - 2")
			_, rest, _ := strings.Cut(changelog, " - unreleased\n")
			write(t, dir, "CHANGELOG.md", "# Changelog\n\n## "+c.next+" - unreleased\n\n- Second.\n"+rest)
			commit(t, dir)
			err := release(dir, false, out)
			if c.refused == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorContains(t, err, c.refused)
			require.Equal(t, "redisstore/v"+c.last+"\nv"+c.last, run(t, dir, "git", "tag"))
		})
	}
}

// TestReleaseNeedsWords finds a CHANGELOG that announces nothing, or says nothing.
func TestReleaseNeedsWords(t *testing.T) {
	identity(t)
	for _, c := range []struct{ changelog, refused string }{
		{"# Changelog\n", "the first heading"},
		{"# Changelog\n\n## 0.1.0 - 2026-01-01\n\n- First.\n", "the first heading"},
		{"# Changelog\n\n## 0.2.0 - unreleased\n\n## 0.1.0 - 2026-01-01\n\n- First.\n", "nothing stands under"},
	} {
		dir := t.TempDir()
		run(t, dir, "git", "init", "--quiet")
		write(t, dir, "go.mod", "module "+rootPath+"\n\ngo 1.25.0\n")
		write(t, dir, "CHANGELOG.md", c.changelog)
		commit(t, dir)
		require.ErrorContains(t, release(dir, false, &strings.Builder{}), c.refused)
		write(t, dir, "draft", "")
		require.ErrorContains(t, release(dir, false, &strings.Builder{}), "not committed")
		require.Empty(t, run(t, dir, "git", "tag"))
	}
}

// identity lets git commit on a machine that does not know its user, and keeps this user's
// settings out of the tests.
func identity(t *testing.T) {
	t.Helper()
	t.Setenv("GIT_CONFIG_GLOBAL", os.DevNull)
	for _, role := range []string{"AUTHOR", "COMMITTER"} {
		t.Setenv("GIT_"+role+"_NAME", "Release test")
		t.Setenv("GIT_"+role+"_EMAIL", "release@example.test")
	}
}

func commit(t *testing.T, dir string) {
	t.Helper()
	run(t, dir, "git", "add", "--all")
	run(t, dir, "git", "commit", "--quiet", "--message", "a change")
}

func write(t *testing.T, dir, name, text string) {
	t.Helper()
	name = filepath.Join(dir, name)
	require.NoError(t, os.MkdirAll(filepath.Dir(name), 0o755))
	require.NoError(t, os.WriteFile(name, []byte(text), 0o644))
}

func read(t *testing.T, dir, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, name))
	require.NoError(t, err)
	return string(data)
}
