package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"strings"
	"testing"
)

// regressions are the faults that people found in an earlier build, and cases from public
// reports about services of this kind, which are named with words. Each has the tests of
// the rule that prevents its kind.
var regressions = []struct{ name, what, tests string }{
	{"1", "a stolen refresh token followed its session through every rotation, without a warning",
		"TestTheGraceIsForTheSameClient TestRefreshGrace TestSessionLifetime TestRefreshReuseEndsTheSession"},
	{"2", "a stolen refresh token of an admin was enough to take over every user",
		"TestProofTable TestEveryRouteSaysWhoMayCallIt TestAProofIsCheckedWhenTheWriteRuns"},
	{"3", "a thief in the same session kept his tokens after the password was changed",
		"TestAChangedPasswordRekeysTheSession TestAKeptTokenOfAnAdmin TestATokenNewerThanItsSessionIsRefused"},
	{"4", "a token was proof for as long as it lived, and could live for ten years",
		"TestProofTable TestABadValueIsRefusedInOneLineThatNamesTheSetting TestARetiredKeyEndsWithinADay TestTutorial"},
	{"5", "a list of users went on after its reader was disabled",
		"TestAListChecksItsReaderForEachPart"},
	{"6", "key rotate left a leaked key valid for the lifetime of a token",
		"TestALeakedKeyEndsNow TestTheRefreshKeyIsRotated TestKeyRotation"},
	{"7", "key rotate and key list named a signing key that the server did not use",
		"TestCommandsKnowTheServersKey TestAKeyOfTheEnvironmentIsNotRotated"},
	{"8", "JWT_SECRET_KEY_PREVIOUS_FILE was ignored without a word",
		"TestEachSecretCanBeInAFile TestTheSigningKeyIsTakenFromOnePlace"},
	{"9", "a step of the wall clock changed limits, tokens and the grace of refresh tokens",
		"TestEveryReaderOfAClockIsListed TestAStepOfTheWallClock TestAStepOfTheWallClockChangesNoLimit TestTheGraceIsForTheSameClient"},
	{"10", "a member could make any number of changes, and find out which names exist by them",
		"TestTheChangesOfAMemberAreLimited"},
	{"11", "malformed requests used up the allowances of the honest clients of a network",
		"TestGarbageUsesUpNothingThatHonestClientsShare"},
	{"12", "the time of a 429 showed whether a name exists",
		"TestALimitedNetworkLooksUpNoUser TestKnownAndUnknownNamesAreRefusedAlike"},
	{"13", "one IPv6 /48 escaped every limit by network",
		"TestAWideNetworkHasOneAllowance"},
	{"14", "an address in brackets, or a comma at the end, in X-Forwarded-For counted as the proxy",
		"TestClientAddress"},
	{"15", "behind a proxy set up by the documentation, clients chose their own address",
		"TestReverseProxies TestClientAddress"},
	{"16", "connections that read nothing held 1.8 GB of the kernel's memory",
		"TestUnreadAnswersAreBoundedTogether TestLittleOfAnAnswerIsHeldForAClientThatDoesNotRead TestRequestsBeyondTheFirstOfAConnectionAreLimitedInTotal TestClientsThatStallMakeRoom"},
	{"17", "one field of a CSV file took 3.9 GB of memory, and HEAD read the whole list of users",
		"TestARowIsBounded TestImport TestHEADReadsOnePartOfALongList"},
	{"18", "in a directory that others can write, restore as root changed the owner of any file, and backups were replaced",
		"TestAttacksOnADirectoryMakeRootWriteNowhereElse TestAStrangersLogIsNotRead TestAFileThatWasReplacedGetsNoNameUnnoticed TestAFileThatChangesWhileItIsCopiedIsRefused TestAServerWithTheOldFileCannotWriteAfterARestore"},
	{"19", "a readable database was served, root's commands left root's files, and a missing right was not named",
		"TestAReadableDatabaseIsMadePrivate TestAMissingRightIsNamedAndNothingIsLeft TestRootGivesANewFileToTheOwnerOfItsDirectory"},
	{"20", "a server whose database was deleted went on, and all later writes were lost",
		"TestALostFileRefusesWrites TestWithoutConfigurationItServes"},
	{"21", "hashes and addresses of deleted users stayed in free pages",
		"TestNothingOfDeletedUsersStaysInTheFile TestEveryConnectionOfTheStoreHasItsPragmas"},
	{"22", "SIGHUP did not end the server, and idle connections were closed before those of proxies",
		"TestAHangupWithoutACertificateEndsTheServer TestAHangupDoesNotEndWhatNohupStarted TestAnIdleConnectionOutlivesThoseOfProxies"},
	{"23", "a trigger in the database made a member an admin",
		"TestTriggersAndViewsOfOurTablesAreFound TestADatabaseWithATriggerIsNotUsed TestARestoreThatIsRefusedLeavesEverythingAsItWas TestACheckTellsWhatIsWrong"},
	{"24", "a value stored as bytes broke the list of users, or the user could not log in",
		"TestBytesBecomeText TestACheckTellsWhatIsWrong"},
	{"25", "events verify accepted a forged trim, and the server itself made a deletion part of the chain",
		"TestAForgedTrimIsFoundByTheAgeOfTheBase TestUserdDoesNotTrimEventsThatWereMadeToLookOld TestTrimmingRefusesEventsThatDoNotMatchTheChain TestACommandLinksItsEvents TestEachActIsOneEvent"},
	{"26", "adopt -resolve oldest deleted users without naming them",
		"TestDuplicatesAreRefusedOrRenamed"},
	{"27", "databases of apps that extend the tutorial were refused with little advice",
		"TestADatabaseThatCannotBeAdoptedIsRefused TestTimesOfTheAppAreTakenOver TestARefusalLeadsToAnImport TestForeignHashes"},
	{"28", "after an import with the highest id, JavaScript could not tell later users apart",
		"TestUsersAfterTheHighestImportedIDHaveExactIDs TestImport TestADatabaseThatCannotBeAdoptedIsRefused"},
	{"29", "common passwords, and those made of the user's own name, were accepted",
		"TestCommonPasswords TestCheckPassword TestAContextWordWithoutLetters TestThePasswordPolicyCanBeSet"},
	{"30", "an address could begin as a flag or a formula, and a name could pass for an identity",
		"TestAnAddressDoesNotBeginWithASign TestANameGivesNoRights TestVerifyRefusesAnAdoptedUserWithoutAName TestDelete"},
	{"31", "a space after a name, a byte-order mark or an empty line made a good input wrong",
		"TestSpacesAroundANameAreTrimmed TestImport TestTheSigningKeyIsTakenFromOnePlace TestCommandsOnARunningServer"},
	{"32", "an error printed the password of a database URL, and sqlite:app.db made a file of that name",
		"TestARefusedDatabaseURLIsPrintedWithoutItsPassword TestNoErrorAboutASettingRepeatsASecret TestABadValueIsRefusedInOneLineThatNamesTheSetting"},
	{"33", "ETags, request ids, tracing headers and PORT of usual proxies and platforms were refused or ignored",
		"TestMatchesTheTagsThatProxiesMake TestOnlyATrustedProxyGivesARequestItsID TestCORS TestTheImageListensOnThePortOfAPlatform"},
	{"34", "generators of clients could not read openapi.json",
		"TestDocumentComponentsHaveNamesOfTheirOwn TestDocumentFitsGenerators"},
	{"35", "the help was too long, and usual forms of asking for it were refused",
		"TestHelpIsASummaryOfOneScreen TestHelpForACommandIsAboutThisCommandOnly TestHelpForAGroupListsItsCommands TestFlagsCanBeAnywhere TestVersionIsOneLine"},
	{"36", "the log of a 404 had no path",
		"TestALoggedPathIsShortAndHasNoSecret TestTheLogNamesUserAndTarget"},
	{"36", "an error about an id did not show the id",
		"TestCommandsThatFail"},
	{"36", "errors about ports and directories did not name the setting or the missing capability",
		"TestATakenPortIsAFailureThatLeavesNothing TestAnErrorAboutAPortNamesTheSettingAndTheMissingCapability TestAFileThatIsNotItsOwnIsRefusedAndLeftAsItIs"},
	{"36", "user set wrote an event without a change, and user show printed a list",
		"TestUserSetWithoutAChangeWritesNothing TestUserListAndShow"},
	{"36", "user add asked once for a password, and user export printed hashes to a terminal",
		"TestOnATerminalANewPasswordIsAskedForTwice TestAnExportIsNotPrintedToATerminal"},
	{"36", "an import showed no progress, reported rows out of order, and created a database to check a file",
		"TestProgressIsShownOnceASecond TestLongCommandsShowNoStepsInAFile TestBadRowsAreReportedInOrderAlsoBeforeAFatalOne TestADryRunOfAnImportCreatesAndUpgradesNoDatabase TestACommandThatFailsCreatesNoDatabase"},
	{"36", "events showed ids without names, and one user was 1 users",
		"TestEventsOnTheCommandLine TestPlural"},
	{"37", "go.mod accepted a release of Go with known vulnerabilities",
		"TestTheModuleRequiresOnlySQLiteAndCrypto TestTheWorkflowLooksForVulnerabilities"},

	{"cors_trace_headers", "a page could not send the headers of its monitoring", "TestCORS"},
	{"csv_bom_quoted", "a byte-order mark before a quoted header of a CSV file", "TestImport"},
	{"db_deleted", "the files of the database are deleted under a running server", "TestALostFileRefusesWrites"},
	{"idle_60", "a proxy reuses a connection after a minute", "TestAnIdleConnectionOutlivesThoseOfProxies"},
	{"if_match_weak", "a proxy that compresses changes an ETag", "TestMatchesTheTagsThatProxiesMake"},
	{"login_space", "a keyboard adds a space to a name", "TestSpacesAroundANameAreTrimmed"},
	{"ndjson_blank_bom", "an empty line or a byte-order mark in NDJSON", "TestImport"},
	{"openapi_names", "two components have names that differ only in case", "TestDocumentComponentsHaveNamesOfTheirOwn"},
	{"port_paas", "a platform sets PORT for the image", "TestTheImageListensOnThePortOfAPlatform"},
	{"request_id", "a proxy gives a request its id", "TestOnlyATrustedProxyGivesARequestItsID TestTheAnswerAndTheLogHaveTheIDOfTheProxy"},
	{"stdin_password_bom", "a byte-order mark before a password on standard input", "TestCommandsOnARunningServer"},
	{"werkzeug_sha256", "hashes that Werkzeug wrote before version 3", "TestForeignHashes TestForeignHashesAreReplaced"},
	{"xff_bracket", "an IPv6 address in brackets in X-Forwarded-For", "TestClientAddress"},
}

// testsThatSkip returns the tests of all packages, and whether each can skip itself.
func testsThatSkip(t *testing.T) map[string]bool {
	t.Helper()
	found := make(map[string]bool)
	for _, pattern := range []string{"*_test.go", "internal/*/*_test.go"} {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range paths {
			file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			for _, decl := range file.Decls {
				f, ok := decl.(*ast.FuncDecl)
				if !ok || f.Recv != nil || !strings.HasPrefix(f.Name.Name, "Test") {
					continue
				}
				found[f.Name.Name] = false
				ast.Inspect(f, func(n ast.Node) bool {
					if call, ok := n.(*ast.SelectorExpr); ok && strings.HasPrefix(call.Sel.Name, "Skip") {
						found[f.Name.Name] = true
					}
					return true
				})
			}
		}
	}
	return found
}

func TestEachRegressionHasItsTests(t *testing.T) {
	t.Parallel()
	const faults, cases = 37, 13
	tests := testsThatSkip(t)
	rows := make(map[string]bool)
	for _, row := range regressions {
		rows[row.name] = true
		always := false
		for name := range strings.FieldsSeq(row.tests) {
			skips, exists := tests[name]
			if !exists {
				t.Errorf("%s (%s): the test %s does not exist", row.name, row.what, name)
			}
			always = always || exists && !skips
		}
		if !always {
			t.Errorf("%s (%s): no test runs always", row.name, row.what)
		}
	}
	for n := range faults {
		if !rows[fmt.Sprint(n+1)] {
			t.Errorf("no row for fault %d", n+1)
		}
	}
	if len(rows) != faults+cases {
		t.Errorf("rows for %d faults and cases, want %d", len(rows), faults+cases)
	}
}
