package main

import (
	"bufio"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"github.com/ganbauth/ganbauth/internal/testenv"
)

// root is the repository's, as seen from here.
const root = "../.."

// stack is compose.yaml, with the fields that it uses and no others.
type stack struct {
	Name     string
	Services map[string]service
	Configs  map[string]struct{ File string }
}

type service struct {
	Image       string
	Build       struct{ Context, Dockerfile, Target string }
	Command     []string
	NetworkMode string `yaml:"network_mode"`
	Configs     []struct{ Source, Target string }
	Profiles    []string
	Environment map[string]string
	Ports       []string
	Healthcheck struct {
		Test              []string
		Interval, Timeout time.Duration
		Retries           int
	}
	DependsOn map[string]struct{ Condition string } `yaml:"depends_on"`
}

// readStack reads compose.yaml and conf.json. The replacements are done before.
func readStack(t *testing.T, replacements ...string) (s stack, conf string) {
	t.Helper()
	read := func(name string) string {
		text, err := os.ReadFile(name)
		require.NoError(t, err)
		return strings.NewReplacer(replacements...).Replace(string(text))
	}
	decoder := yaml.NewDecoder(strings.NewReader(read("compose.yaml")))
	decoder.KnownFields(true)
	require.NoError(t, decoder.Decode(&s))
	return s, read(s.Configs["conf"].File)
}

// stage is one of the Dockerfile's.
type stage struct {
	from       string
	run        []string
	copy       [][]string
	entrypoint []string
}

// stages reads the Dockerfile, and knows no more instructions than it has.
func stages(t *testing.T, file string) map[string]*stage {
	t.Helper()
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	all := map[string]*stage{}
	var last *stage
	for line := range strings.Lines(string(text)) {
		instruction, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch instruction {
		case "", "#", "#\tdocker", "WORKDIR", "ENV", "USER":
		case "FROM":
			from, name, _ := strings.Cut(rest, " AS ")
			last = &stage{from: from}
			all[name] = last
		case "RUN":
			last.run = append(last.run, rest)
		case "COPY":
			last.copy = append(last.copy, strings.Fields(rest))
		case "ENTRYPOINT":
			require.NoError(t, yaml.Unmarshal([]byte(rest), &last.entrypoint))
		default:
			t.Fatalf("what is %q?", line)
		}
	}
	return all
}

// images builds what the Dockerfile builds, and returns the command that each image runs.
func images(t *testing.T) map[string][]string {
	t.Helper()
	built, commands := map[string]string{}, map[string][]string{} // by path in the image, and by target
	for target, s := range stages(t, "Dockerfile") {
		for _, command := range s.run {
			words := strings.Fields(command)
			require.Equal(t, []string{"go", "build"}, words[:2])
			output := slices.Index(words, "-o") + 1
			built[words[output]] = filepath.Join(t.TempDir(), path.Base(words[output]))
			words[output] = built[words[output]]
			cmd := exec.Command(words[0], words[1:]...)
			cmd.Dir = root
			out, err := cmd.CombinedOutput()
			require.NoError(t, err, "%s: %s", command, out)
		}
		if s.entrypoint != nil {
			commands[target] = s.entrypoint
		}
	}
	for target, command := range commands {
		s := stages(t, "Dockerfile")[target]
		require.Len(t, s.copy, 1)
		require.Equal(t, "--from=build", s.copy[0][0])
		require.Contains(t, built, s.copy[0][1])
		require.Equal(t, "/usr/local/bin/"+command[0], s.copy[0][2], "the PATH leads to it")
		commands[target] = append([]string{built[s.copy[0][1]]}, command[1:]...)
	}
	return commands
}

// The image that builds has the Go that go.mod asks for, and the others have a version.
func TestDockerfile(t *testing.T) {
	all := stages(t, "Dockerfile")
	for _, module := range []string{root, ".", root + "/goredisstore", root + "/pgxstore", root + "/mysqlstore"} {
		mod, err := os.ReadFile(module + "/go.mod")
		require.NoError(t, err)
		version := regexp.MustCompile(`(?m)^go (\d+\.\d+)`).FindStringSubmatch(string(mod))[1]
		require.Equal(t, "golang:"+version+"-alpine", all["build"].from, module)
	}
	require.Equal(t, [][]string{{".", "."}}, all["build"].copy, "of the repository")
	for name, s := range all {
		require.Regexp(t, `^[a-z]+:\d+\.\d+(-alpine)?$`, s.from, name)
	}
}

// What the services name exists: files, targets, each other, ports, and the variables that
// the application reads.
func TestComposeFile(t *testing.T) {
	s, _ := readStack(t)
	bank := s.Services["bank"]
	require.Equal(t, "http://127.0.0.1:9999/healthz", bank.Healthcheck.Test[len(bank.Healthcheck.Test)-1])
	engines := map[string]struct{ port, user, password, database string }{
		"redis": {port: "6379"}, "postgres": {"5432", "POSTGRES_USER", "POSTGRES_PASSWORD", "POSTGRES_DB"},
		"mysql": {"3306", "MARIADB_USER", "MARIADB_PASSWORD", "MARIADB_DATABASE"},
	}
	require.Len(t, s.Services, 1+2*len(engines))
	for name, e := range engines {
		engine, app := s.Services[name], s.Services["app-"+name]
		require.Regexp(t, `^[a-z]+:\d+(\.\d+)?$`, engine.Image)
		require.Equal(t, []string{name}, engine.Profiles)
		require.Equal(t, []string{name}, app.Profiles)
		require.Equal(t, "service:bank", app.NetworkMode)
		require.Len(t, app.DependsOn, 2)
		for _, other := range []string{"bank", name} {
			require.Equal(t, "service_healthy", app.DependsOn[other].Condition)
			require.NotEmpty(t, s.Services[other].Healthcheck.Test)
		}

		read := map[string]bool{}
		settings, err := readSettings(func(name string) string { read[name] = true; return app.Environment[name] })
		require.NoError(t, err)
		for variable := range app.Environment {
			require.True(t, read[variable], "the application does not read %s", variable)
		}
		require.Contains(t, bank.Command, "-redirect-uri="+settings.redirectURI)
		require.Contains(t, bank.Command, "-client-id="+settings.clientID)
		require.Equal(t, bank.Environment["GANB_CLIENT_SECRET"], settings.clientSecret)
		require.Equal(t, settings.conf, app.Configs[0].Target)
		require.FileExists(t, s.Configs[app.Configs[0].Source].File)

		store, err := url.Parse(settings.store)
		require.NoError(t, err)
		require.Equal(t, name, store.Scheme)
		require.Equal(t, name+":"+e.port, store.Host)
		require.Equal(t, engine.Environment[e.user], store.User.Username())
		password, _ := store.User.Password()
		require.Equal(t, engine.Environment[e.password], password)
		require.Equal(t, engine.Environment[e.database], strings.TrimPrefix(store.Path, "/"))

		for _, built := range []service{bank, app} {
			require.FileExists(t, filepath.Join(built.Build.Context, "go.mod"))
			require.Contains(t, stages(t, filepath.Join(built.Build.Context, built.Build.Dockerfile)), built.Build.Target)
		}
		require.Equal(t, []string{"127.0.0.1" + settings.addr + settings.addr, "127.0.0.1:9999:9999"}, bank.Ports)
		require.Contains(t, bank.Command, "-addr=:9999")
	}
}

// The README names the stack's command, and each profile.
func TestComposeInREADME(t *testing.T) {
	for _, name := range []string{"README.md", "README.ja.md"} {
		text, err := os.ReadFile(filepath.Join(root, name))
		require.NoError(t, err)
		for _, want := range []string{"docker compose -f _example/cluster/compose.yaml --profile redis up --build", "`postgres`", "`mysql`"} {
			require.True(t, strings.Contains(string(text), want), "%s: %s", name, want)
		}
	}
}

// The stack without its containers: the commands, variables and files of compose.yaml, on
// free ports and on real engines. A user connects, and stays connected when the
// application starts again.
func TestStack(t *testing.T) {
	commands := images(t)
	for name, engine := range map[string]func() string{
		"redis":    func() string { return "redis://" + testenv.Redis(t).Addr },
		"postgres": func() string { _, u := testenv.Postgres(t); return u },
		"mysql":    func() string { p, _ := testenv.MariaDB(t); return "mysql://root@" + p.Addr + "/app" },
	} {
		t.Run(name, func(t *testing.T) {
			s, conf := readStack(t, "9999", strconv.Itoa(testenv.FreePort(t)), "8080", strconv.Itoa(testenv.FreePort(t)))
			bank, app := s.Services["bank"], s.Services["app-"+name]
			app.Environment["STORE"] = engine()
			app.Environment["GANB_CONF"] = filepath.Join(t.TempDir(), "conf.json")
			require.NoError(t, os.WriteFile(app.Environment["GANB_CONF"], []byte(conf), 0o600))

			launch(t, bank, commands[bank.Build.Target])
			health := bank.Healthcheck.Test[len(bank.Healthcheck.Test)-1]
			require.Equal(t, http.StatusOK, get(t, http.DefaultClient, health).status)
			served := get(t, http.DefaultClient, strings.TrimSuffix(health, "healthz")+"conf.json")
			require.JSONEq(t, conf, served.body)

			end := launch(t, app, commands[app.Build.Target])
			jar, err := cookiejar.New(nil)
			require.NoError(t, err)
			browser := &http.Client{Jar: jar}
			home := strings.TrimSuffix(app.Environment["REDIRECT_URI"], "bank/callback")
			consent := get(t, browser, home)
			require.Contains(t, consent.body, "ganbauth asks for access to your account")
			resp, err := browser.PostForm(consent.url.String(), url.Values{
				"query": {consent.url.RawQuery}, "decision": {"approve"}, "scope": strings.Fields(consent.url.Query().Get("scope")),
			})
			require.NoError(t, err)
			require.NoError(t, resp.Body.Close())
			connected := get(t, browser, home)
			require.Contains(t, connected.body, "普通預金")
			require.NotContains(t, connected.body, "/kill/")

			end()
			launch(t, app, commands[app.Build.Target])
			again := get(t, browser, home)
			require.Equal(t, subject.FindString(connected.body), subject.FindString(again.body))
			require.NotEmpty(t, subject.FindString(again.body))
		})
	}
}

type answer struct {
	status int
	url    *url.URL
	body   string
}

// get opens a page as a browser.
func get(t *testing.T, client *http.Client, target string) answer {
	t.Helper()
	req, err := http.NewRequest("GET", target, nil)
	require.NoError(t, err)
	req.Header.Set("Accept", "text/html")
	resp, err := client.Do(req)
	require.NoError(t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return answer{resp.StatusCode, resp.Request.URL, string(body)}
}

// launch runs a service's command, and waits for the first line of its output. The
// function that it returns ends the command as "docker compose stop" does.
func launch(t *testing.T, s service, command []string) (end func()) {
	t.Helper()
	cmd := exec.Command(command[0], append(command[1:], s.Command...)...)
	for name, value := range s.Environment {
		cmd.Env = append(cmd.Env, name+"="+value)
	}
	cmd.Stderr = t.Output()
	stdout, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	ended := false
	t.Cleanup(func() {
		if !ended {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	})
	lines := bufio.NewReader(stdout)
	_, err = lines.ReadString('\n')
	require.NoError(t, err)
	go func() { _, _ = io.Copy(io.Discard, lines) }()
	return func() {
		require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
		ended = true
		require.NoError(t, cmd.Wait())
	}
}
