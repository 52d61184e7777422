package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/mod/module"
	"golang.org/x/mod/zip"
)

// TestOutside plays the outside world: programs elsewhere get the modules from a proxy that
// serves them as the next release would pack them, and the last release beside it.
func TestOutside(t *testing.T) {
	identity(t)
	repo := copyOfWorkTree(t)
	last, err := lastRelease(repo)
	require.NoError(t, err)
	if last == "" { // this work tree plays the last release, too
		last = releaseOf(t, repo)
	}
	next := releaseOf(t, repo)
	outside(t, repo, last, next)

	modules, err := published(repo)
	require.NoError(t, err)
	stores := modules[1:]
	require.NotEmpty(t, stores)
	each := func(version string, dirs ...string) (queries []string) {
		for _, dir := range dirs {
			queries = append(queries, path.Join(rootPath, dir)+"@"+version)
		}
		return queries
	}

	t.Run("root", func(t *testing.T) {
		dir := consumer(t, repo, ".")
		run(t, dir, "go", append([]string{"get"}, each("latest", ".")...)...)
		works(t, dir)
		modulesUsed := run(t, dir, "go", "list", "-deps", "-f", "{{with .Module}}{{.Path}}{{end}}", ".")
		for used := range strings.FieldsSeq(modulesUsed) {
			require.Contains(t, []string{"example.test/consumer", rootPath,
				"github.com/alexedwards/scs/v2", "github.com/golang-jwt/jwt/v5"}, used)
		}
		run(t, dir, "go", "build", "-o", os.DevNull, rootPath+"/ganbtest/ganbank")
		worksVendored(t, dir)
	})
	t.Run("ganbank", func(t *testing.T) {
		t.Setenv("GOBIN", t.TempDir())
		run(t, t.TempDir(), "go", "install", rootPath+"/ganbtest/ganbank@latest")
	})
	for _, store := range stores {
		t.Run(store, func(t *testing.T) {
			dir := consumer(t, repo, ".", store)
			run(t, dir, "go", append([]string{"get"}, each("latest", store)...)...)
			works(t, dir)
		})
	}
	t.Run("all by tidy", func(t *testing.T) {
		dir := consumer(t, repo, modules...)
		run(t, dir, "go", "mod", "tidy")
		works(t, dir)
		require.Equal(t, next, versionOf(t, dir, "."))
		worksVendored(t, dir)
	})
	t.Run("a newer root with the last stores", func(t *testing.T) {
		dir := consumer(t, repo, modules...)
		run(t, dir, "go", append([]string{"get"}, append(each(next, "."), each(last, stores...)...)...)...)
		works(t, dir)
		require.Equal(t, next, versionOf(t, dir, "."))
		require.Equal(t, last, versionOf(t, dir, stores[0]))
	})
	t.Run("newer stores with the last root", func(t *testing.T) {
		dir := consumer(t, repo, modules...)
		run(t, dir, "go", append([]string{"get"}, each(last, modules...)...)...)
		works(t, dir)
		run(t, dir, "go", append([]string{"get"}, each(next, stores...)...)...)
		works(t, dir)
		require.Equal(t, next, versionOf(t, dir, "."), "stores bring the root that they need")
	})
}

// TestStoresUseThePublicAPI holds that a store's code lives on what its users can see, as a
// newer root may have another internal/, and that its tests need no other package of the
// root's internal/ than the two that docs/releasing.md promises to keep in their places.
func TestStoresUseThePublicAPI(t *testing.T) {
	public, err := publicPackages("../..")
	require.NoError(t, err)
	stores := 0
	for _, p := range public {
		if !strings.HasSuffix(p.PkgPath, "store") {
			continue
		}
		stores++
		for path := range p.Imports {
			require.NotContains(t, path, rootPath+"/internal/", p.PkgPath)
		}
	}
	require.Positive(t, stores)
	modules, err := published("../..")
	require.NoError(t, err)
	for _, dir := range modules[1:] {
		tests := run(t, filepath.Join("../..", dir), "go", "list", "-f", `{{join .TestImports "\n"}}
{{join .XTestImports "\n"}}`, "./...")
		for name := range strings.FieldsSeq(tests) {
			if strings.HasPrefix(name, rootPath+"/internal/") {
				require.Contains(t, []string{rootPath + "/internal/storetest", rootPath + "/internal/testenv"}, name, dir)
			}
		}
	}
}

// copyOfWorkTree returns a repository with the history and the tags of this one, whose HEAD
// is the work tree as it is.
func copyOfWorkTree(t *testing.T) string {
	t.Helper()
	repo := t.TempDir()
	run(t, "../..", "git", "clone", "--quiet", ".", repo)
	run(t, repo, "git", "rm", "-r", "--quiet", ".")
	files := run(t, "../..", "git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
	for name := range strings.SplitSeq(strings.Trim(files, "\x00"), "\x00") {
		data, err := os.ReadFile(filepath.Join("../..", name))
		if os.IsNotExist(err) {
			continue // deleted, and not committed
		}
		require.NoError(t, err)
		write(t, repo, name, string(data))
	}
	run(t, repo, "git", "add", "--all")
	run(t, repo, "git", "commit", "--quiet", "--allow-empty", "--message", "the work tree")
	return repo
}

// releaseOf makes the next release of repo, after a dry run, and returns its version.
func releaseOf(t *testing.T, repo string) string {
	t.Helper()
	version, err := nextVersion(repo)
	require.NoError(t, err)
	heading := fmt.Sprintf("## %s - unreleased\n", version[1:])
	write(t, repo, "CHANGELOG.md", strings.Replace(read(t, repo, "CHANGELOG.md"), heading, heading+"\n- A change.\n", 1))
	commit(t, repo)

	state := func() string {
		return run(t, repo, "git", "for-each-ref") + run(t, repo, "git", "status", "--porcelain")
	}
	before, out := state(), &strings.Builder{}
	require.NoError(t, release(repo, true, out))
	require.Contains(t, out.String(), "tags: "+version)
	require.Equal(t, before, state(), "a dry run changes nothing")

	require.NoError(t, release(repo, false, out))
	return version
}

// outside packs the releases and points the go command at them and, for all other
// modules, at this machine's module cache and the proxy that it uses anyway. The
// unpublished versions go to a module cache of the test's own.
func outside(t *testing.T, repo string, versions ...string) {
	t.Helper()
	proxy := t.TempDir()
	modules, err := published(repo)
	require.NoError(t, err)
	for _, version := range versions {
		for _, dir := range modules {
			pack(t, proxy, repo, dir, version)
		}
	}
	env := map[string]string{}
	require.NoError(t, json.Unmarshal([]byte(run(t, ".", "go", "env", "-json")), &env))
	others := strings.TrimSuffix(env["GOPROXY"], ",direct") // nobody asks GitHub for what is not there
	t.Setenv("GOPROXY", fmt.Sprintf("file://%s,file://%s/cache/download,%s", proxy, env["GOMODCACHE"], others))
	t.Setenv("GOSUMDB", "off") // it does not know the unpublished versions
	t.Setenv("GOMODCACHE", t.TempDir())
	t.Setenv("GOFLAGS", "-modcacherw -trimpath") // trimmed paths let runs share the build cache
	t.Setenv("GOWORK", "off")
}

// pack puts one module of a release into the proxy's directory, unless that release did not
// have it.
func pack(t *testing.T, proxy, repo, dir, version string) {
	t.Helper()
	m := module.Version{Path: path.Join(rootPath, dir), Version: version}
	tag := strings.TrimPrefix(dir+"/"+version, "./")
	if run(t, repo, "git", "tag", "--list", tag) == "" {
		return
	}
	at := path.Join(m.Path, "@v")
	goMod := run(t, repo, "git", "show", tag+":"+path.Join(dir, "go.mod"))
	write(t, proxy, path.Join(at, version+".mod"), goMod+"\n")
	info, err := json.Marshal(map[string]any{"Version": version, "Time": time.Now().UTC()})
	require.NoError(t, err)
	write(t, proxy, path.Join(at, version+".info"), string(info))
	list, _ := os.ReadFile(filepath.Join(proxy, at, "list"))
	write(t, proxy, path.Join(at, "list"), string(list)+version+"\n")
	archive, err := os.Create(filepath.Join(proxy, at, version+".zip"))
	require.NoError(t, err)
	defer archive.Close()
	require.NoError(t, zip.CreateFromVCS(archive, m, repo, tag, strings.TrimPrefix(dir, ".")))
}

// consumer returns a module elsewhere with a program that imports every public package of
// these modules of the repository.
func consumer(t *testing.T, repo string, dirs ...string) string {
	t.Helper()
	program := "package main\n\nimport (\n"
	for _, dir := range dirs {
		importable := run(t, filepath.Join(repo, dir), "go", "list", "-f", `{{if ne .Name "main"}}{{.ImportPath}}{{end}}`, "./...")
		for name := range strings.FieldsSeq(importable) {
			if !strings.Contains(name, "/internal/") {
				program += fmt.Sprintf("\t_ %q\n", name)
			}
		}
	}
	dir := t.TempDir()
	write(t, dir, "main.go", program+")\n\nfunc main() {}\n")
	write(t, dir, "go.mod", "module example.test/consumer\n\ngo 1.25.0\n")
	return dir
}

// works builds the module at dir in the ways that people build.
func works(t *testing.T, dir string) {
	t.Helper()
	run(t, dir, "go", "build", "-mod=mod", "-o", os.DevNull, ".")
	run(t, dir, "go", "mod", "tidy")
	run(t, dir, "go", "vet", "./...")
	run(t, dir, "go", "build", "-o", os.DevNull, ".")
}

// worksVendored builds the module at dir with its dependencies copied into it.
func worksVendored(t *testing.T, dir string) {
	t.Helper()
	run(t, dir, "go", "mod", "vendor")
	run(t, dir, "go", "build", "-mod=vendor", "-o", os.DevNull, ".")
}

// versionOf returns the version of a module of the repository that the module at dir uses.
func versionOf(t *testing.T, dir, of string) string {
	t.Helper()
	return run(t, dir, "go", "list", "-m", "-f", "{{.Version}}", path.Join(rootPath, of))
}

// run returns what a program prints, and fails the test with its complaints.
func run(t *testing.T, dir, program string, args ...string) string {
	t.Helper()
	cmd := exec.Command(program, args...)
	cmd.Dir = dir
	stderr := &strings.Builder{}
	cmd.Stderr = stderr
	out, err := cmd.Output()
	require.NoError(t, err, "%s %s\n%s%s", program, strings.Join(args, " "), out, stderr)
	return strings.TrimSpace(string(out))
}
