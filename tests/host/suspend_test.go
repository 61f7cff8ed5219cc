package host

import (
	"bytes"
	"context"
	"encoding/json"
	"testing"
	"time"

	"gitlab.com/gitlab-org/fleeting/fleeting"
	"gitlab.com/gitlab-org/fleeting/fleeting/connector"
	"gitlab.com/gitlab-org/fleeting/fleeting/provider"
)

// What the host waits for here comes within this time.
const napPatience = 90 * time.Second

// napping is a host with a running plugin, which asks for the state of its instances often.
type napping struct {
	*fleeting.Provisioner
	kill func()
}

func startNapping(t *testing.T, config map[string]any) napping {
	t.Helper()
	plugin := binary(t, "PLUGIN_BIN", "fleeting-plugin-vcd")
	text, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	runner, err := fleeting.RunPlugin(plugin, text)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), initTimeout)
	defer cancel()
	connector := provider.ConnectorConfig{
		Username: "root", Password: "secret-password", UseStaticCredentials: true, ProtocolPort: guestPort, Timeout: time.Minute,
	}
	provisioner, err := fleeting.Init(ctx, nil, runner.InstanceGroup(), fleeting.WithMaxSize(5),
		fleeting.WithUpdateInterval(200*time.Millisecond), fleeting.WithUpdateIntervalWhenExpecting(100*time.Millisecond),
		fleeting.WithInstanceGroupSettings(provider.Settings{ConnectorConfig: connector}))
	if err != nil {
		runner.Kill()
		t.Fatal(err)
	}
	return napping{provisioner, runner.Kill}
}

func (n napping) end(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), napPatience)
	defer cancel()
	n.Shutdown(ctx)
	n.kill()
}

// ask requests instances, and returns all of them when they run.
func (n napping) ask(t *testing.T, count int) []fleeting.Instance {
	t.Helper()
	n.Request(count)
	deadline := time.Now().Add(napPatience)
	for len(n.Instances()) < count {
		if time.Now().After(deadline) {
			t.Fatalf("%d instances after %v", len(n.Instances()), napPatience)
		}
		time.Sleep(50 * time.Millisecond)
	}
	instances := n.Instances()
	for _, instance := range instances {
		reaches(t, instance, provider.StateRunning)
	}
	return instances
}

func reaches(t *testing.T, instance fleeting.Instance, state provider.State) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), napPatience)
	defer cancel()
	if !instance.WaitForState(ctx, state) {
		t.Fatalf("%s is %v, not %v, after %v", instance.ID(), instance.State(), state, napPatience)
	}
}

// hello logs in and runs a command.
func hello(t *testing.T, instance fleeting.Instance) {
	t.Helper()
	info, err := instance.ConnectInfo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var said, complained bytes.Buffer
	err = connector.Run(t.Context(), info, connector.ConnectorOptions{
		RunOptions: connector.RunOptions{Command: "echo 'hello world'", Stdout: &said, Stderr: &complained},
	})
	if err != nil || said.String() != "hello world\n" {
		t.Fatalf("%s: %q, %q, %v", instance.ID(), said.String(), complained.String(), err)
	}
}

func TestSuspendAndResume(t *testing.T) {
	sim, _ := startGuests(t)
	host := startNapping(t, sim.pluginConfig(nil))
	if !host.HasCapability(provider.CapabilitySuspendResume) {
		t.Fatal("the capability is not announced")
	}
	instances := host.ask(t, 2)
	one, other := instances[0], instances[1]
	hello(t, one)

	done, err := host.Suspend(t.Context(), []string{one.ID()})
	if err != nil || len(done) != 1 {
		t.Fatalf("suspended: %q, %v", done, err)
	}
	reaches(t, one, provider.StateSuspended)
	if other.State() != provider.StateRunning {
		t.Errorf("the other one is %v", other.State())
	}
	// Again: it is suspended already.
	if done, err := host.Suspend(t.Context(), []string{one.ID()}); err != nil || len(done) != 1 {
		t.Errorf("suspended again: %q, %v", done, err)
	}
	if done, err := host.Resume(t.Context(), []string{one.ID()}); err != nil || len(done) != 1 {
		t.Fatalf("resumed: %q, %v", done, err)
	}
	reaches(t, one, provider.StateRunning)
	hello(t, one)

	// What GitLab Runner does around a job.
	one.Suspend()
	ctx, cancel := context.WithTimeout(t.Context(), napPatience)
	defer cancel()
	if err := host.ResumeAndWait(ctx, []string{one.ID()}); err != nil {
		t.Fatal(err)
	}
	if one.State() != provider.StateRunning {
		t.Errorf("it is %v after ResumeAndWait", one.State())
	}
	hello(t, one)

	// A suspended one and a running one are deleted.
	if _, err := host.Suspend(t.Context(), []string{one.ID()}); err != nil {
		t.Fatal(err)
	}
	reaches(t, one, provider.StateSuspended)
	one.Delete()
	reaches(t, one, provider.StateDeleted)
	host.end(t)
	sim.waitForNoVapp(t)
}

func TestSuspendedInstancesSurviveARestart(t *testing.T) {
	sim, _ := startGuests(t)
	config := sim.pluginConfig(map[string]any{"on_shutdown": "keep"})
	host := startNapping(t, config)
	one := host.ask(t, 1)[0]
	if _, err := host.Suspend(t.Context(), []string{one.ID()}); err != nil {
		t.Fatal(err)
	}
	reaches(t, one, provider.StateSuspended)
	host.end(t)

	host = startNapping(t, sim.pluginConfig(nil))
	found := host.Instances()
	if len(found) != 1 || found[0].ID() != one.ID() || found[0].State() != provider.StateSuspended {
		t.Fatalf("found after the restart: %v", found)
	}
	if _, err := host.Resume(t.Context(), []string{one.ID()}); err != nil {
		t.Fatal(err)
	}
	reaches(t, found[0], provider.StateRunning)
	hello(t, found[0])
	host.end(t)
	sim.waitForNoVapp(t)
}

func TestSuspendIsNotAnnouncedWhenOff(t *testing.T) {
	sim := startSimulator(t, "127.0.0.1:0", "")
	host := startNapping(t, sim.pluginConfig(map[string]any{"suspend_resume": false}))
	if host.HasCapability(provider.CapabilitySuspendResume) {
		t.Error("the capability is announced")
	}
	host.end(t)
}
