package host

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	// Its tests are run below: this keeps what they need in go.mod.
	_ "gitlab.com/gitlab-org/fleeting/fleeting/plugin"
)

const pluginPackage = "gitlab.com/gitlab-org/fleeting/fleeting/plugin"

// TestOfficialCommands runs fleeting's own tests of `version`, `bootstrap` and `serve`, unchanged, against this plugin. They
// build a plugin in Go with the `go` that they find, and expect the version of a build between releases: so they are given a
// `go` that copies our binary, which must have been compiled with VCD_VERSION=dev.
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
	// None may have been left out.
	if passed := strings.Count(string(out), "    --- PASS: TestPluginMain/"); passed != 9 {
		t.Errorf("%d cases passed, not 9", passed)
	}
}

// TestBootstrap installs the release binary as fleeting's installer does.
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
	version := regexp.MustCompile(`(?m)^Version: +(\S+)$`).FindStringSubmatch(string(info))
	if version == nil {
		t.Fatalf("no version in %s", info)
	}
	bootstrap := func(repo, path string, variables ...string) (string, string, error) {
		var stdout, stderr strings.Builder
		command := exec.Command(plugin, "bootstrap", repo)
		command.Env = append([]string{"FLEETING_PLUGIN_PATH=" + path}, variables...)
		command.Stdout, command.Stderr = &stdout, &stderr
		err := command.Run()
		return stdout.String(), stderr.String(), err
	}

	want := filepath.Join(plugins, "registry.gitlab.com", "!my", "vcd", version[1])
	for range 2 { // The second time it is there already.
		out, complaints, err := bootstrap("My/vcd:latest", plugins)
		if err != nil || out != want+"\n" || complaints != "" {
			t.Errorf("%v: said %q, %q, not %q", err, out, complaints, want)
		}
	}
	if out, err := exec.Command(filepath.Join(want, "plugin"), "version").Output(); err != nil || string(out) != string(info) {
		t.Errorf("what was installed does not run: %v %s", err, out)
	}
	entries, err := os.ReadDir(plugins)
	if err != nil || len(entries) != 1 {
		t.Errorf("something else is left in the folder: %v %v", entries, err)
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
