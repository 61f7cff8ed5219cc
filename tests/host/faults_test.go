package host

import (
	"context"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"gitlab.com/gitlab-org/fleeting/fleeting"
	"gitlab.com/gitlab-org/fleeting/fleeting/provider"
)

// Lasting faults, and what they must not affect. The plugin's own pauses are real time, so these tests run in
// parallel.

// beside lets a test run in parallel with the others. Long tests are for .ci/deep.
func beside(t *testing.T, long bool) {
	t.Helper()
	if long && os.Getenv("DEEP") == "" {
		t.Skip("takes more than 30 s: set DEEP=1")
	}
	t.Parallel()
}

// admin changes a vApp without the plugin.
func (s simulator) admin(t *testing.T, action, vapp string, more map[string]any) {
	t.Helper()
	request := map[string]any{"action": action, "vapp": vapp}
	for key, value := range more {
		request[key] = value
	}
	if err := postJSON(s.control+"/admin", request); err != nil {
		t.Fatal(err)
	}
}

// deletesFail makes the tasks of a vApp's deletes fail, or succeed again.
func (s simulator) deletesFail(t *testing.T, vapp string, fail bool) {
	t.Helper()
	faults := []string{}
	if fail {
		faults = append(faults, "delete_fails")
	}
	s.admin(t, "set_faults", vapp, map[string]any{"faults": faults})
}

// fault adds a rule for a fault of requests.
func (s simulator) fault(t *testing.T, rule map[string]any) {
	t.Helper()
	if err := postJSON(s.control+"/faults", rule); err != nil {
		t.Fatal(err)
	}
}

// noFaults ends all faults.
func (s simulator) noFaults(t *testing.T) {
	t.Helper()
	request, err := http.NewRequest(http.MethodDelete, s.control+"/faults", nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil || response.StatusCode != http.StatusOK {
		t.Fatalf("%v: %v", request.URL, err)
	}
	response.Body.Close()
}

// tasks returns VCD's tasks for a vApp, oldest first, as "operation status".
func (s simulator) tasks(t *testing.T, vapp string) []string {
	t.Helper()
	var tasks []string
	for _, task := range s.state(t).Tasks {
		if task.Target == vapp {
			tasks = append(tasks, task.Operation+" "+task.Status)
		}
	}
	return tasks
}

// creates returns the number of creates that VCD received, and the number that it accepted.
func (s simulator) creates(t *testing.T) (received, accepted int) {
	t.Helper()
	var counts struct {
		Requests, Accepted map[string]int
	}
	if err := getJSON(s.control+"/counts", &counts); err != nil {
		t.Fatal(err)
	}
	return counts.Requests["instantiate"], counts.Accepted["instantiate"]
}

// status is the part of the plugin's status that these tests read.
type status struct {
	Stuck     struct{ Instances int }
	Poll      struct{ FailedInARow int }
	Instances []instanceStatus
}

type instanceStatus struct {
	ID, Phase, WaitsFor string
	Task                *string
	RetryCount          int
	NextRetryAfter      *time.Time
}

// debugServer is the address of a plugin's debug server.
type debugServer string

func (d debugServer) status(t *testing.T) status {
	t.Helper()
	var status status
	if err := getJSON("http://"+string(d)+"/api/status", &status); err != nil {
		t.Fatal(err)
	}
	return status
}

func (d debugServer) of(t *testing.T, id string) instanceStatus {
	t.Helper()
	all := d.status(t).Instances
	index := slices.IndexFunc(all, func(one instanceStatus) bool { return one.ID == id })
	if index < 0 {
		t.Fatalf("%s is not in %+v", id, all)
	}
	return all[index]
}

func (d debugServer) text(t *testing.T, path string) string {
	t.Helper()
	response, err := http.Get("http://" + string(d) + path)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

func ids(instances []fleeting.Instance) []string {
	ids := make([]string, 0, len(instances))
	for _, instance := range instances {
		ids = append(ids, instance.ID())
	}
	slices.Sort(ids)
	return ids
}

// As many vApps as there are slots cannot be deleted. Others are still deleted, created, suspended and resumed.
func TestVappsThatCannotBeDeletedDelayNothing(t *testing.T) {
	beside(t, false)
	sim := startSimulator(t, "")
	debug := debugServer(freeAddress(t))
	host := sim.live(t, map[string]any{"debug_server_addr": string(debug)}, password)
	all := host.requestRunning(t, 7)
	bad, good, suspended := all[:4], all[4:6], all[6]
	if _, err := host.Suspend(t.Context(), []string{suspended.ID()}); err != nil {
		t.Fatal(err)
	}
	reaches(t, suspended, provider.StateSuspended)
	for _, one := range bad {
		sim.deletesFail(t, one.ID(), true)
		one.Delete()
	}
	eventually(t, func() bool { return debug.status(t).Stuck.Instances == len(bad) }, "deletes to fail")

	for _, one := range good {
		one.Delete()
	}
	host.Request(2)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := host.ResumeAndWait(ctx, []string{suspended.ID()}); err != nil {
		t.Error(err)
	}
	for _, one := range good {
		reaches(t, one, provider.StateDeleted)
	}
	if run := ids(host.running(t, 3)); !slices.Contains(run, suspended.ID()) {
		t.Errorf("%s was resumed, but %q run", suspended.ID(), run)
	}
	// A running instance can still be suspended.
	suspended.Suspend()
	reaches(t, suspended, provider.StateSuspended)
	there := sim.vapps(t)
	for _, one := range bad {
		if !slices.Contains(there, one.ID()) || one.State() != provider.StateDeleting {
			t.Errorf("%s, which cannot be deleted, is %v", one.ID(), one.State())
		}
	}
}

// fails waits until this many deletes of an instance have failed, and returns the time of the next attempt.
func (d debugServer) fails(t *testing.T, id string, count int) time.Time {
	t.Helper()
	var one instanceStatus
	eventually(t, func() bool {
		one = d.of(t, id)
		return one.RetryCount == count && one.NextRetryAfter != nil
	}, "delete %d of %s to fail", count, id)
	return *one.NextRetryAfter
}

// deletes returns VCD's tasks that delete or stop a vApp.
func (s simulator) deletes(t *testing.T, vapp string) []string {
	t.Helper()
	return slices.DeleteFunc(s.tasks(t, vapp), func(task string) bool {
		return !strings.HasPrefix(task, "vdcDeleteVapp") && !strings.HasPrefix(task, "vappUndeploy")
	})
}

func deletesBackOff(t *testing.T, count int) {
	sim := startSimulator(t, "")
	debug := debugServer(freeAddress(t))
	host := sim.live(t, map[string]any{"debug_server_addr": string(debug)}, password)
	one := host.requestRunning(t, 1)[0]
	sim.deletesFail(t, one.ID(), true)
	one.Delete()
	before := debug.fails(t, one.ID(), 1)
	// A forced delete fails, then the vApp is stopped first. Afterwards it is off.
	expected := []string{"vdcDeleteVapp error", "vappUndeployPowerOff success"}
	// Pauses of 10 s, 20 s, 40 s and so on, each up to a quarter longer or shorter.
	least := 15 * time.Second
	for failed := 2; failed <= count; failed++ {
		next := debug.fails(t, one.ID(), failed)
		if pause := next.Sub(before); pause < least {
			t.Errorf("delete %d comes %v after the one before, expected at least %v", failed+1, pause, least)
		}
		before, least = next, 2*least
		expected = append(expected, "vdcDeleteVapp error")
	}
	if found := sim.deletes(t, one.ID()); !slices.Equal(found, expected) {
		t.Errorf("VCD's tasks are %q, expected %q", found, expected)
	}
	if stuck := debug.status(t).Stuck.Instances; stuck != 1 {
		t.Errorf("%d are reported as stuck", stuck)
	}
	if page := debug.text(t, "/"); !regexp.MustCompile(`(?m)^!.*stuck`).MatchString(page) {
		t.Errorf("the page shows nothing as stuck: %s", page)
	}
	if metrics := debug.text(t, "/metrics"); !regexp.MustCompile(`(?m)^fleeting_vcd_instances_stuck\{.*\} 1(\.0)?$`).MatchString(metrics) {
		t.Error("the metrics count nothing as stuck")
	}
}

func TestDeletesThatFailBackOff(t *testing.T) {
	beside(t, false)
	deletesBackOff(t, 2)
}

func TestDeletesThatFailForLongBackOff(t *testing.T) {
	beside(t, true)
	deletesBackOff(t, 4)
}

func TestAVMThatIsDeletedInVCDIsReplaced(t *testing.T) {
	beside(t, false)
	sim := startSimulator(t, "")
	host := sim.live(t, nil, password)
	all := host.requestRunning(t, 2)
	one, other := all[0], all[1]
	sim.admin(t, "delete_vms", one.ID(), nil)
	reaches(t, one, provider.StateDeleted)
	host.Request(1)
	run := ids(host.running(t, 2))
	if slices.Contains(run, one.ID()) || !slices.Contains(run, other.ID()) {
		t.Errorf("%q run, after the VM of %s was deleted and the VM of %s was not", run, one.ID(), other.ID())
	}
	eventually(t, func() bool { return !slices.Contains(sim.vapps(t), one.ID()) }, "the delete of the empty vApp")

	// An instance that is not running yet is created again.
	host.Request(1)
	var young string
	eventually(t, func() bool {
		for _, vapp := range sim.state(t).Vapps {
			if !slices.Contains(run, vapp.Name) && len(vapp.VMs) > 0 && vapp.VMs[0].Status == "POWERED_ON" {
				young = vapp.Name
			}
		}
		return young != ""
	}, "a guest to boot")
	sim.admin(t, "delete_vms", young, nil)
	if run := ids(host.running(t, 3)); !slices.Contains(run, young) {
		t.Errorf("%q run, not %s", run, young)
	}
	host.end()
	sim.waitForNoVapp(t)
}

// outage simulates an outage that is longer than ready_timeout, while one instance runs and two guests boot.
func outage(t *testing.T, readyTimeout, lasts time.Duration) {
	sim := startSimulator(t, "")
	debug := debugServer(freeAddress(t))
	host := sim.live(t, map[string]any{
		"debug_server_addr": string(debug), "ready_timeout": readyTimeout.String(), "create_timeout": (2 * readyTimeout).String(),
	}, password)
	host.requestRunning(t, 1)
	host.Request(2)
	// All creates are accepted: the outage loses none.
	eventually(t, func() bool {
		boots := func(one instanceStatus) bool {
			return one.Phase == "Creating" && (one.WaitsFor == "guest customization" || one.WaitsFor == "the login port")
		}
		_, accepted := sim.creates(t)
		return accepted == 3 && len(host.Instances()) == 3 && slices.ContainsFunc(debug.status(t).Instances, boots)
	}, "a guest to boot")
	sim.fault(t, map[string]any{"reset_before": true, "times": 0})
	before := ids(host.Instances())
	for began := time.Now(); time.Since(began) < lasts; time.Sleep(100 * time.Millisecond) {
		for _, instance := range host.Instances() {
			if state := instance.State(); state != provider.StateRunning && state != provider.StateCreating {
				t.Fatalf("%s is %v %v after VCD was gone", instance.ID(), state, time.Since(began))
			}
		}
	}
	if debug.status(t).Poll.FailedInARow == 0 {
		t.Error("VCD was reachable all the time")
	}
	sim.noFaults(t)
	if after := ids(host.running(t, 3)); !slices.Equal(before, after) {
		t.Errorf("%q existed before, and %q afterwards", before, after)
	}
	if _, creates := sim.creates(t); creates != 3 {
		t.Errorf("VCD created %d VMs for 3 instances", creates)
	}
	host.end()
	sim.waitForNoVapp(t)
}

func TestAnOutageDeletesNothing(t *testing.T) {
	beside(t, false)
	outage(t, 8*time.Second, 12*time.Second)
}

func TestALongOutageDeletesNothing(t *testing.T) {
	beside(t, true)
	outage(t, 20*time.Second, 75*time.Second)
}

// standIn returns a program that becomes the plugin, and writes its process id.
func standIn(t *testing.T) (place string) {
	t.Helper()
	place = t.TempDir()
	script, err := filepath.Abs(filepath.Join("testdata", "stand-in"))
	if err != nil {
		t.Fatal(err)
	}
	plugin := binary(t, "PLUGIN_BIN", "fleeting-plugin-vcd")
	for name, target := range map[string]string{"stand-in": script, "plugin": plugin} {
		if err := os.Symlink(target, filepath.Join(place, name)); err != nil {
			t.Fatal(err)
		}
	}
	return place
}

// kill kills the plugin.
func kill(t *testing.T, place string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(place, "pid"))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

// The plugin is killed while VCD creates VMs for it. VMs that are created only after the restart get no jobs.
func TestUnfinishedVMsOfAKilledPluginAreNotUsed(t *testing.T) {
	const count = 3
	for name, late := range map[string]bool{"VCD works on it": false, "VCD has not accepted it yet": true} {
		t.Run(name, func(t *testing.T) {
			beside(t, false)
			sim := startSimulator(t, "")
			if late {
				sim.fault(t, map[string]any{"op": "instantiate", "delay_before_ms": 5000, "times": count})
			} else {
				// Slow enough to last until the next plugin runs.
				sim.fault(t, map[string]any{"op": "instantiate", "slow": 8, "times": count})
			}
			place := standIn(t)
			killed := sim.liveAs(t, filepath.Join(place, "stand-in"), nil, password)
			killed.Request(count)
			eventually(t, func() bool {
				received, accepted := sim.creates(t)
				return received == count && (late || accepted == count)
			}, "creates")
			eventually(t, func() bool { return len(killed.Instances()) == count }, "the host to see them")
			old := ids(killed.Instances())
			kill(t, place)
			killed.end()

			host := sim.live(t, nil, password)
			// GitLab Runner deletes these too.
			first := host.Instances()
			for _, one := range first {
				one.Delete()
			}
			host.Request(count)
			done := func() bool {
				run := 0
				for _, one := range host.Instances() {
					found := slices.Contains(first, one)
					if slices.Contains(old, one.ID()) && (!found || one.State() == provider.StateCreating) {
						t.Fatalf("%s of the killed plugin is reported: %v, %v", one.ID(), one.Cause(), one.State())
					}
					if !found && one.State() == provider.StateRunning {
						run++
					}
				}
				if run > count {
					t.Fatalf("%d run, and %d were requested", run, count)
				}
				left := func(vapp string) bool { return slices.Contains(old, vapp) }
				_, accepted := sim.creates(t)
				return run == count && accepted == 2*count && !slices.ContainsFunc(sim.vapps(t), left)
			}
			eventually(t, done, "%d instances, and none of %q", count, old)
			host.end()
			sim.waitForNoVapp(t)
		})
	}
}

// fullPipe creates a pipe that accepts no more bytes.
func fullPipe(t *testing.T, path string) int {
	t.Helper()
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	pipe, err := syscall.Open(path, syscall.O_RDWR|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Close(pipe) })
	for {
		switch _, err := syscall.Write(pipe, []byte("x")); err {
		case nil, syscall.EINTR:
		case syscall.EAGAIN:
			return pipe
		default:
			t.Fatal(err)
		}
	}
}

func TestAnUnreadLogDelaysNothing(t *testing.T) {
	beside(t, false)
	sim := startSimulator(t, "")
	place := standIn(t)
	pipe := fullPipe(t, filepath.Join(place, "stderr"))
	host := sim.liveAs(t, filepath.Join(place, "stand-in"), nil, password)
	all := host.requestRunning(t, 2)
	all[0].Delete()
	reaches(t, all[0], provider.StateDeleted)

	// Now the log is read, and it reports the loss.
	var said strings.Builder
	buffer := make([]byte, 64<<10)
	host.Request(1)
	eventually(t, func() bool {
		if n, err := syscall.Read(pipe, buffer); err == nil {
			said.Write(buffer[:n])
		}
		return strings.Contains(said.String(), "log lines were dropped: GitLab Runner did not read them")
	}, "the log to report the dropped lines")
	host.running(t, 2)
	host.end()
	sim.waitForNoVapp(t)
}
