package host

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	// TestOfficialCommands runs its tests. This import keeps their dependencies in go.mod.
	_ "gitlab.com/gitlab-org/fleeting/fleeting/plugin"
)

const pluginPackage = "gitlab.com/gitlab-org/fleeting/fleeting/plugin"

// TestOfficialCommands runs fleeting's own tests of `version`, `bootstrap` and `serve`, unchanged, with this plugin.
// They build a plugin in Go with the `go` that they find, and expect the version of a build between releases. So they
// get a `go` that copies our binary, which must have been compiled with VCD_VERSION=dev.
func TestOfficialCommands(t *testing.T) {
	plugin := os.Getenv("DEV_PLUGIN_BIN")
	if plugin == "" {
		plugin = filepath.Join("..", "..", "target", "dev", "fleeting-plugin-vcd")
	}
	plugin, err := filepath.Abs(plugin)
	if err != nil {
		t.Fatal(err)
	}
	version, err := exec.Command(plugin, "version").CombinedOutput()
	if err != nil || !regexp.MustCompile(`(?m)^Version: +dev$`).Match(version) {
		t.Fatalf("%s must be built with VCD_VERSION=dev: %v %s", plugin, err, version)
	}

	place := t.TempDir()
	tests := filepath.Join(place, "plugin.test")
	if out, err := exec.Command("go", "test", "-c", "-o", tests, pluginPackage).CombinedOutput(); err != nil {
		t.Fatalf("build fleeting's own tests: %v\n%s", err, out)
	}
	if err := os.WriteFile(filepath.Join(place, "go"), []byte("#!/bin/sh\nexec cp \"$PLUGIN_BIN\" \"$3\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	command := exec.Command(tests, "-test.v", "-test.run", "TestPluginMain")
	command.Env = append(os.Environ(), "PATH="+place+":"+os.Getenv("PATH"), "PLUGIN_BIN="+plugin)
	command.Dir = place
	out, err := command.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Fatal(err)
	}
	// No case may have been skipped.
	if passed := strings.Count(string(out), "    --- PASS: TestPluginMain/"); passed != 9 {
		t.Errorf("%d cases passed, not 9", passed)
	}
}

// TestBootstrap installs the binary as fleeting's installer does, into a folder named after its version, or after its
// commit for a build between releases.
func TestBootstrap(t *testing.T) {
	release := binary(t, "PLUGIN_BIN", "fleeting-plugin-vcd")
	image, plugins := t.TempDir(), t.TempDir()
	plugin := filepath.Join(image, "plugin")
	if out, err := exec.Command("cp", release, plugin).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	info, err := exec.Command(plugin, "-version").Output()
	if err != nil {
		t.Fatal(err)
	}
	said := func(fact string) string {
		line := regexp.MustCompile(`(?m)^` + fact + `: +(\S+)$`).FindStringSubmatch(string(info))
		if line == nil {
			t.Fatalf("no %s in %s", fact, info)
		}
		return line[1]
	}
	version := said("Version")
	if version == "dev" {
		built := regexp.MustCompile(`\D`).ReplaceAllString(said("Built"), "")
		version = fmt.Sprintf("0.0.0-%s-%s", built, said("Git revision"))
	}
	bootstrap := func(repo, path string, variables ...string) (string, string, error) {
		var stdout, stderr strings.Builder
		command := exec.Command(plugin, "bootstrap", repo)
		command.Env = append([]string{"FLEETING_PLUGIN_PATH=" + path}, variables...)
		command.Stdout, command.Stderr = &stdout, &stderr
		err := command.Run()
		return stdout.String(), stderr.String(), err
	}

	want := filepath.Join(plugins, "registry.gitlab.com", "!my", "vcd", version)
	for range 2 { // The second time, it exists.
		out, complaints, err := bootstrap("My/vcd:latest", plugins)
		if err != nil || out != want+"\n" || complaints != "" {
			t.Errorf("%v: printed %q, %q, expected %q", err, out, complaints, want)
		}
	}
	if out, err := exec.Command(filepath.Join(want, "plugin"), "version").Output(); err != nil || string(out) != string(info) {
		t.Errorf("the installed plugin does not run: %v %s", err, out)
	}
	entries, err := os.ReadDir(plugins)
	if err != nil || len(entries) != 1 {
		t.Errorf("another file is left in the folder: %v %v", entries, err)
	}

	_, complaints, err := bootstrap("foo.bar/vcd", plugins, "FLEETING_PLUGIN_PKG_VERSION=9.9.9")
	if err != nil || !strings.Contains(complaints, "fleeting plugin package version and binary version differ") {
		t.Errorf("%v: another package version: %q", err, complaints)
	}
	out, _, err := bootstrap("vcd", filepath.Join(plugins, "nowhere"))
	if err == nil || !strings.Contains(out, "doesn't exist") {
		t.Errorf("%v: no folder: %q", err, out)
	}
}

// checkCreate runs `check --create` with guests that accept logins, and returns its output.
func checkCreate(t *testing.T, connector string) string {
	t.Helper()
	if _, err := exec.LookPath("ssh"); err != nil {
		t.Skip("no ssh client: this test needs a login")
	}
	plugin := binary(t, "PLUGIN_BIN", "fleeting-plugin-vcd")
	sim, _ := startGuests(t)
	var keys strings.Builder
	for key, value := range sim.pluginConfig(nil) {
		quoted, err := json.Marshal(value)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&keys, "%s = %s\n", key, quoted)
	}
	file := filepath.Join(t.TempDir(), "config.toml")
	config := fmt.Sprintf("shutdown_timeout = 120\n[[runners]]\nname = \"vcd\"\nexecutor = \"instance\"\n[runners.autoscaler]\n"+
		"plugin = \"fleeting-plugin-vcd\"\ncapacity_per_instance = 1\nmax_use_count = 1\nmax_instances = 2\n"+
		"[runners.autoscaler.plugin_config]\n%s[runners.autoscaler.connector_config]\nprotocol_port = %d\n%s",
		keys.String(), sim.guestPort, connector)
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(plugin, "check", "--create", "--config", file).CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Fatal(err)
	}
	if vapps := sim.vapps(t); len(vapps) > 0 {
		t.Errorf("left in VCD: %q", vapps)
	}
	return string(out)
}

// TestCheckCreate creates an instance, logs in to it with the system's ssh and deletes it, with each kind of
// credentials.
func TestCheckCreate(t *testing.T) {
	_, private := newKey(t)
	key := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(key, private, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, connector := range map[string]string{
		"password":  "use_static_credentials = true\nusername = \"root\"\npassword = '''it's \"a\" $secret\\'''\n",
		"key":       "use_static_credentials = true\nusername = \"root\"\nkey_path = \"" + key + "\"\n",
		"generated": "use_static_credentials = false\n",
	} {
		t.Run(name, func(t *testing.T) {
			said := checkCreate(t, connector)
			for _, line := range []string{"ok    create ", "ok    SSH              logged in as root@", "ok    delete "} {
				// A generated key has a format (PKCS#8) that OpenSSH reads since 9.6, and Go always.
				unread := name == "generated" && strings.Contains(said, "the ssh client here cannot read the key's format")
				if !strings.Contains(said, line) && !(unread && strings.Contains(line, "SSH")) {
					t.Errorf("does not print %q", line)
				}
			}
			for _, secret := range []string{token, "$secret", "PRIVATE KEY"} {
				if strings.Contains(said, secret) {
					t.Errorf("prints the secret %q", secret)
				}
			}
		})
	}
}
